rule pack:
    """Cut training windows of one length from tokens, as an index."""
    input:
        lambda wildcards: lookups.inputs("pack", wildcards),
    output:
        manifest=plan.pattern("pack"),
    log:
        lookups.log("pack"),
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        **lookups.resources("pack"),
    params:
        *lookups.triggers.params("pack"),
        arguments=lambda wildcards, input: lookups.arguments("pack", wildcards),
    shell:
        "ropewalk pack {params.arguments} 2>&1 | tee {log:q}"
