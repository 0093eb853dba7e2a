"""The peers of train.py: steps of the same model over the same rows, a turn at a time.

`PYTHON train_peers.py LIBRARY FOLDER` stays alive and does a turn for every line it reads:

    {"arm": "plain_fp32", "steps": 3}  ->  {"seconds": 3.9, "cpu_seconds": 7.6, "first_loss": 9.01}

FOLDER holds `case.json` (shapes and optimizer), `rows.npy` (token ids [step, row, token]), the same
for packed rows, and `weights` (a Hugging Face checkpoint all arms start from). LIBRARY is
`transformers` (a plain loop), `trainer` or `litgpt`.

Dimensions: B rows, T tokens of a row.
"""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

Step = Callable[[np.ndarray], float]  # ids [B, T] -> mean loss in nats


class Arm:
    """A step and how far it has come through the rows."""

    def __init__(self, step: Step, rows: np.ndarray) -> None:
        self.step = step
        self.rows = rows
        self.done = 0
        self.first_loss: float | None = None

    def turn(self, steps: int) -> dict[str, float | None]:
        """Do some steps; return their time, the CPU time of all threads, and the first loss."""
        clock, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            loss = self.step(self.rows[self.done % len(self.rows)])
            self.first_loss = loss if self.done == 0 else self.first_loss
            self.done += 1
        return {
            "seconds": time.perf_counter() - clock,
            "cpu_seconds": time.process_time() - cpu,
            "first_loss": self.first_loss,
        }


class Case:
    """What FOLDER says."""

    def __init__(self, folder: Path) -> None:
        found = json.loads((folder / "case.json").read_text())
        self.shape: dict[str, Any] = found["architecture"]
        self.optimizer: dict[str, Any] = found["optimizer"]
        self.document_tokens: int = found["document_tokens"]
        self.weights = folder / "weights"
        self.rows = np.load(folder / "rows.npy")
        self.packed = np.load(folder / "packed.npy")


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Run a block in `fp32` (torch's default), `fp32_medium` or `bf16` (autocast).

    How fp32 products are computed is a switch of the process; it stays for the backward.
    """
    torch.set_float32_matmul_precision("medium" if name == "fp32_medium" else "highest")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16"):
        yield


class Peer:
    """A process of this file, seen from train.py; `missing` says why there is none."""

    def __init__(self, *, process: subprocess.Popen | None, errors: Path, missing: str | None):
        self.process = process
        self.errors = errors
        self.missing = missing
        self.versions: dict[str, str] = {}

    @classmethod
    def started(
        cls, library: str, work: Path, *arguments: str, python: str | None = sys.executable
    ) -> "Peer":
        """Start the process of a library; None as `python` means that there is none."""
        errors = work / f"{'-'.join((library, *arguments))}.txt"
        if python is None:
            return cls(process=None, errors=errors, missing="no --peers-python was given")
        command = [python, "-P", str(Path(__file__).resolve()), library, str(work), *arguments]
        with errors.open("w") as sink:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True
            )
        return cls(process=process, errors=errors, missing=None)

    def wait(self) -> None:
        """Wait until the process is ready."""
        self.versions = self._read()["versions"]

    def try_out(self, arm: str) -> None:
        """Wait and do a step; a process that cannot is left out of the measurement."""
        if self.process is None:
            return
        try:
            self.wait()
            self.arm(arm)(1)
        except SystemExit as error:
            self.missing = str(error).splitlines()[-1]

    def arm(self, name: str) -> Callable[[int], dict]:
        """Return a function that lets the process do some steps and returns their times."""

        def turn(steps: int) -> dict:
            assert self.process is not None
            assert self.process.stdin is not None
            print(json.dumps({"arm": name, "steps": steps}), file=self.process.stdin, flush=True)
            return self._read()

        return turn

    def _read(self) -> dict:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            said = self.errors.read_text().strip()[-2000:]
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended with {code}:\n{said}")
        return json.loads(line)

    def end(self) -> None:
        """Let the process end."""
        if self.process is not None:
            self.process.communicate(timeout=60)


# A plain loop over transformers


def transformers_step(case: Case, arm: str) -> Arm:
    """`plain_PRECISION`, or on packed rows `dense_PRECISION` (4-D mask) and `causal_PRECISION`."""
    kind, _, numerics = arm.partition("_")
    rows = case.rows if kind == "plain" else case.packed
    model = _llama(case)
    spec = case.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=spec["lr"],
        betas=tuple(spec["betas"]),
        weight_decay=spec["weight_decay"],
        fused=True,
    )
    length = rows.shape[2]
    documents = torch.arange(length) // case.document_tokens  # [T]
    first = torch.arange(length) % case.document_tokens == 0  # [T]
    mask = None
    if kind == "dense":  # bool [B, 1, T, T], made once
        same = documents[:, None] == documents[None, :]
        mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[None, None]
        mask = mask.expand(rows.shape[1], 1, length, length)

    def step(ids: np.ndarray) -> float:
        given = torch.from_numpy(ids)
        # transformers shifts labels: the one at a document's first token is its predecessor's.
        labels = given if kind == "plain" else given.masked_fill(first, -100)
        with precision(numerics):
            loss = model(input_ids=given, labels=labels, attention_mask=mask, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return Arm(step, rows)


def _llama(case: Case) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(case.weights, dtype=torch.float32).train()


# litgpt


def litgpt_step(case: Case, arm: str) -> Arm:
    """`litgpt_PRECISION`: its GPT, its loss and Fabric, as `litgpt pretrain` puts them together."""
    from lightning.fabric import Fabric
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    shape, spec = case.shape, case.optimizer
    length = case.rows.shape[2]
    fabric = Fabric(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if arm.endswith("bf16") else "32-true",
    )
    config = Config(
        name="benchmark",
        block_size=length,
        vocab_size=shape["vocabulary_size"],
        padded_vocab_size=shape["vocabulary_size"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        n_query_groups=shape["heads"],
        n_embd=shape["hidden"],
        intermediate_size=shape["ffn"],
        rotary_percentage=1.0,
        rope_base=int(shape["rope_base"]),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=shape["norm_epsilon"],
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    model.load_state_dict(_litgpt_weights(case), strict=True)
    model = fabric.setup(model)
    # As litgpt's own start-up does: fused on CUDA only.
    optimizer = fabric.setup_optimizers(
        torch.optim.AdamW(
            model.parameters(),
            lr=spec["lr"],
            betas=tuple(spec["betas"]),
            weight_decay=spec["weight_decay"],
            fused=False,
        )
    )

    def step(ids: np.ndarray) -> float:
        given = torch.from_numpy(ids)
        targets = given.roll(-1, 1)
        targets[:, -1] = -100
        loss = chunked_cross_entropy(model(given), targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=spec["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return Arm(step, case.rows)


def _litgpt_weights(case: Case) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = load_file(case.weights / "model.safetensors")
    named = {
        "lm_head.weight": found["lm_head.weight"],
        "transformer.wte.weight": found["model.embed_tokens.weight"],
        "transformer.ln_f.weight": found["model.norm.weight"],
    }
    for layer in range(case.shape["layers"]):
        theirs, ours = f"model.layers.{layer}.", f"transformer.h.{layer}."
        named[ours + "norm_1.weight"] = found[theirs + "input_layernorm.weight"]
        named[ours + "norm_2.weight"] = found[theirs + "post_attention_layernorm.weight"]
        named[ours + "attn.qkv.weight"] = torch.cat(
            [found[f"{theirs}self_attn.{part}_proj.weight"] for part in "qkv"]
        )
        named[ours + "attn.proj.weight"] = found[theirs + "self_attn.o_proj.weight"]
        for mine, part in (("fc_1", "gate"), ("fc_2", "up"), ("proj", "down")):
            named[f"{ours}mlp.{mine}.weight"] = found[f"{theirs}mlp.{part}_proj.weight"]
    return named


# transformers.Trainer


class _Dataset(torch.utils.data.Dataset):
    """Rows over and over, as many as `steps` steps of the Trainer can ask for."""

    def __init__(self, rows: np.ndarray, steps: int) -> None:
        self.rows = torch.from_numpy(rows).flatten(0, 1)
        self.length = rows.shape[1] * steps

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.rows[index % len(self.rows)]
        return {"input_ids": ids, "labels": ids}


def serve_trainer(case: Case, arm: str, requests: Iterator[dict], answer: Callable) -> None:
    """`trainer_fp32` or `trainer_bf16`: one training that waits for its turns in a callback."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    steps = 1_000_000  # never reached

    class Turns(TrainerCallback):
        left = 0
        first_loss: float | None = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if self.left == 0:
                request = next(requests, None)
                if request is None:
                    os._exit(0)  # train.py is done with this process
                self.left = request["steps"]
                self.clock, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.left -= 1
            if self.left == 0:
                answer(
                    {
                        "seconds": time.perf_counter() - self.clock,
                        "cpu_seconds": time.process_time() - self.cpu,
                        "first_loss": self.first_loss,
                    }
                )

        def on_log(self, *_: Any, logs: dict | None = None, **__: Any) -> None:
            if self.first_loss is None:
                self.first_loss = (logs or {}).get("loss")

    spec = case.optimizer
    arguments = TrainingArguments(
        output_dir=str(case.weights.parent / arm),
        per_device_train_batch_size=case.rows.shape[1],
        max_steps=steps,
        learning_rate=spec["lr"],
        adam_beta1=spec["betas"][0],
        adam_beta2=spec["betas"][1],
        weight_decay=spec["weight_decay"],
        max_grad_norm=spec["clip_norm"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",  # the rows of the other arms, in their order
        bf16=arm.endswith("bf16"),
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_first_step=True,
        logging_steps=steps,
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(
        model=_llama(case),
        args=arguments,
        train_dataset=_Dataset(case.rows, steps),
        callbacks=[Turns()],
    ).train()


# One process


STEPS = {"transformers": transformers_step, "litgpt": litgpt_step}
VERSIONS = {"transformers": ("transformers",), "litgpt": ("litgpt", "lightning")}


def main(library: str, folder: Path) -> None:
    """Serve turns until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like

    def answer(found: dict) -> None:
        print(json.dumps(found), file=answers, flush=True)

    case = Case(folder)
    if library == "litgpt":
        import litgpt  # noqa: F401 - an absent one should be known now
    names = ("torch", *VERSIONS.get(library, ("transformers", "accelerate")))
    answer({"versions": {name: importlib.metadata.version(name) for name in names}})
    requests = _requests(sys.stdin)
    if library == "trainer":
        serve_trainer(case, sys.argv[3], requests, answer)
        return
    arms: dict[str, Arm] = {}
    for request in requests:
        name = request["arm"]
        if name not in arms:
            arms[name] = STEPS[library](case, name)
        answer(arms[name].turn(request["steps"]))


def _requests(stream: TextIO) -> Iterator[dict]:
    for line in stream:
        yield json.loads(line)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
