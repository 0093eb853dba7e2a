rule inventory:
    """List the files of a source with size and sha256."""
    input:
        lambda wildcards: lookups.inputs("inventory", wildcards),
    output:
        manifest=plan.pattern("inventory"),
    log:
        lookups.log("inventory"),
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        **lookups.resources("inventory"),
    params:
        *lookups.triggers.params("inventory"),
        arguments=lambda wildcards, input: lookups.arguments("inventory", wildcards),
    shell:
        "ropewalk inventory {params.arguments} 2>&1 | tee {log:q}"
