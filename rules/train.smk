rule calibrate:
    """Measure seconds and memory of a model's training steps, once."""
    input:
        lambda wildcards: lookups.inputs("calibrate", wildcards),
    output:
        manifest=plan.pattern("calibrate"),
    log:
        lookups.log("calibrate"),
    conda:
        "../envs/train.yaml"
    threads: 2
    resources:
        **lookups.resources("calibrate"),
    params:
        *lookups.triggers.params("calibrate"),
        arguments=lambda wildcards, input: lookups.arguments("calibrate", wildcards),
    shell:
        "ropewalk calibrate {params.arguments} 2>&1 | tee {log:q}"


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
