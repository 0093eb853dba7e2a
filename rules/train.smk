rule train:
    """Train one run over its phases, or adopt published weights."""
    input:
        lambda wildcards: lookups.inputs("train", wildcards),
    output:
        manifest=plan.pattern("train"),
    log:
        lookups.log("train"),
    conda:
        "../envs/train.yaml"
    threads: 2
    resources:
        **lookups.resources("train"),
    params:
        *lookups.triggers.params("train"),
        arguments=lambda wildcards, input: lookups.arguments("train", wildcards),
    shell:
        "ropewalk train {params.arguments} 2>&1 | tee {log:q}"
