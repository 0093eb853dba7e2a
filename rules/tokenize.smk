rule tokenizer:
    """Train a tokenizer on a corpus, or import one."""
    input:
        lambda wildcards: lookups.inputs("tokenizer", wildcards),
    output:
        manifest=plan.pattern("tokenizer"),
    log:
        lookups.log("tokenizer"),
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        **lookups.resources("tokenizer"),
    params:
        *lookups.triggers.params("tokenizer"),
        arguments=lambda wildcards, input: lookups.arguments("tokenizer", wildcards),
    shell:
        "ropewalk tokenizer {params.arguments} 2>&1 | tee {log:q}"


rule tokenize:
    """Turn a part of a corpus into tokens in Arrow shards."""
    input:
        lambda wildcards: lookups.inputs("tokenize", wildcards),
    output:
        manifest=plan.pattern("tokenize"),
    log:
        lookups.log("tokenize"),
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        **lookups.resources("tokenize"),
    params:
        *lookups.triggers.params("tokenize"),
        arguments=lambda wildcards, input: lookups.arguments("tokenize", wildcards),
    shell:
        "ropewalk tokenize {params.arguments} 2>&1 | tee {log:q}"


rule gather:
    """Put the parts of a corpus together as its tokens."""
    input:
        lambda wildcards: lookups.inputs("gather", wildcards),
    output:
        manifest=plan.pattern("gather"),
    log:
        lookups.log("gather"),
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        **lookups.resources("gather"),
    params:
        *lookups.triggers.params("gather"),
        arguments=lambda wildcards, input: lookups.arguments("gather", wildcards),
    shell:
        "ropewalk gather {params.arguments} 2>&1 | tee {log:q}"
