rule evaluate:
    """Apply one protocol to one run, at its final weights and snapshots."""
    input:
        lambda wildcards: lookups.inputs("evaluate", wildcards),
    output:
        manifest=plan.pattern("evaluate"),
    log:
        lookups.log("evaluate"),
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        **lookups.resources("evaluate"),
    params:
        *lookups.triggers.params("evaluate"),
        arguments=lambda wildcards, input: lookups.arguments("evaluate", wildcards),
    shell:
        "ropewalk evaluate {params.arguments} 2>&1 | tee {log:q}"


rule check:
    """Check a statement of theory exactly, without a model."""
    input:
        lambda wildcards: lookups.inputs("check", wildcards),
    output:
        manifest=plan.pattern("check"),
    log:
        lookups.log("check"),
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        **lookups.resources("check"),
    params:
        *lookups.triggers.params("check"),
        arguments=lambda wildcards, input: lookups.arguments("check", wildcards),
    shell:
        "ropewalk check {params.arguments} 2>&1 | tee {log:q}"
