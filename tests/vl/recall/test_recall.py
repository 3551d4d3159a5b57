"""The recall models' data, tokenizer and recipes, and that a text-only model is trained by them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vl
from preprocessing import ChatTemplate, Processor, Tokenizer
from vl.evaluation.niah.text import ADJECTIVES, INTRODUCTION, NOUNS, VERBS
from vl.recall.source import RecallSource
from vl.recall.tokenizer import train_tokenizer
from vl.training import TrainConfig, train
from vl.training.config import EVALUATION_SEED, SPECIAL_TOKENS
from vl.training.curve import read_log
from vl.training.train import Trainer

TRAINED = 1024  # tokens, as the recipes say


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(Tokenizer(train_tokenizer(1024)), ChatTemplate(None), None)


def test_every_word_and_digit_is_a_token(processor: Processor) -> None:
    backend = processor.tokenizer.backend
    assert [backend.id_to_token(i) for i in range(3)] == list(SPECIAL_TOKENS)
    for word in (*ADJECTIVES, *NOUNS, *VERBS, "The", *INTRODUCTION.removesuffix(":").split()[1:]):
        assert len(processor.tokenizer.encode(f" {word}")) == 1, word
    assert len(processor.tokenizer.encode("40718")) == 5
    assert processor.tokenizer.decode(processor.tokenizer.encode("Ünëxpected <text>")) == "Ünëxpected <text>"


@settings(max_examples=60, deadline=None)
@given(index=st.integers(0, 2**40), stage=st.integers(0, 2))
def test_a_sample_is_right_and_of_its_stage_s_length(processor: Processor, index: int, stage: int) -> None:
    source = RecallSource(TrainConfig.read("recall").data.mix)
    sample = source.draw(7, index, stage)
    assert sample == source.draw(7, index, stage), "a run that is resumed has the same data"
    questions, answers = sample.messages[::2], sample.messages[1::2]
    for question, answer in zip(questions, answers, strict=True):
        key = question["content"].rpartition("What is the code of the ")[2].removesuffix("?")
        assert sample.text.count(f"The code of the {key} is {answer['content']}.") == 1
    assert len({message["content"] for message in answers}) == len(answers)
    assert len(sample.text.split(".")) - 1 <= source.mix.longest >> (2 - stage)
    assert len(processor.training(sample.messages)[0]) <= TRAINED


def test_held_out_texts_are_not_trained_on() -> None:
    source = RecallSource({})
    assert source.draw_held_out("recall", 3) == source.draw(EVALUATION_SEED, 3, 2) != source.draw(0, 3, 2)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"longest": 4}, "data.mix.longest = 4 must be at least 8"),
        ({"needles": 0}, "data.mix.needles"),
        ({"hay": 1}, "unknown key hay"),
        ({"questions": 1.5}, "data.mix.questions = 1.5 must be a whole number"),
    ],
)
def test_a_mix_that_cannot_be_drawn(mix: dict[str, Any], message: str) -> None:
    with pytest.raises(vl.ConfigError, match=message):
        RecallSource(mix)


def test_the_recipes_differ_in_their_attention_alone() -> None:
    ours, softmax = TrainConfig.read("recall"), TrainConfig.read("recall_softmax")
    assert ours.text is not None
    assert ours.text.attn_type_list == (0,) * 7 + (1,)
    assert softmax == replace(ours, text=replace(ours.text, attn_type_list=(1,) * 8))


def small(**text: Any) -> TrainConfig:
    recipe = TrainConfig.read("recall")
    assert recipe.text is not None
    shape = replace(recipe.text, hidden_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                    rotary_dim=8, intermediate_size=32, attn_type_list=(0, 1), **text)  # fmt: skip
    data = replace(recipe.data, batch_tokens=600, workers=0)
    run = replace(recipe.run, steps=30, dtype="float32", log_steps=1, eval_samples=4)
    return replace(recipe, text=shape, data=data, run=run, optimizer=replace(recipe.optimizer, warmup_steps=2))


def test_a_text_only_model_is_trained_and_loads(tmp_path: Path) -> None:
    folder = train(small(), tmp_path, device="cpu")
    losses = [record["loss"] for record in read_log(tmp_path) if record["kind"] == "train"]
    assert len(losses) == 30
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])
    model = vl.load(folder, device="cpu")
    assert model.vision is None
    sample = RecallSource({}).draw_held_out("recall", 0)
    assert isinstance(model.chat(sample.messages[:1], max_new_tokens=2), str)
    inputs = model.processor(sample.messages[:1])
    assert torch.isfinite(model.logits(inputs)).all()


def test_pictures_need_eyes(tmp_path: Path) -> None:
    config = replace(small(), data=replace(small().data, source="nano", mix={}))
    with pytest.raises(vl.ConfigError, match="cannot learn from the pictures of 'nano'"):
        Trainer(config, tmp_path, "cpu")


def test_neither_training_nor_needles_need_what_metrics_and_pages_do(tmp_path: Path) -> None:
    """Where only the dependencies of a training host are, without the extras `train` and `eval` and without a page."""
    code = (
        "import sys\n"
        "for name in ('rapidfuzz', 'gradio', 'matplotlib', 'fontTools', 'tensorboard', 'sklearn', 'transformers'):\n"
        "    sys.modules[name] = None\n"  # importing it raises ModuleNotFoundError
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if sys.modules.get(name, 0) is None else find(name, *rest)\n"
        "from vl.cli.app import run\n"
        "recipe, out = sys.argv[1:]\n"
        "assert run(['train', recipe, '--out', out, '--device', 'cpu']) == 0\n"
        "niah = ['eval', 'niah', '--lengths', '128', '--depths', '0', '--count', '1', '--device', 'cpu']\n"
        "assert run([*niah, '--model', f'{out}/model', '--out', f'{out}/niah']) == 0\n"
        "assert run([*niah, '--pages']) == 3\n"
        "assert run(['eval', 'words', '--count', '1', '--device', 'cpu']) == 3\n"
    )
    recipe = tmp_path / "small.toml"
    text = (Path(vl.__file__).parent / "recall" / "recall.toml").read_text()
    for key, value in {"hidden_size": 32, "head_dim": 16, "rotary_dim": 8, "intermediate_size": 32, "layers": 2,
                       "batch_tokens": 600, "dtype": '"float32"', "minutes": "0.001"}.items():  # fmt: skip
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
    recipe.write_text(text.replace("[data.mix]", "workers = 0\n[data.mix]"))
    command = [sys.executable, "-c", code, str(recipe), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=Path(vl.__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    for message in ("no heat map without matplotlib", "pages are printed in a face of matplotlib", "needs rapidfuzz"):
        assert message in said
    assert (tmp_path / "run" / "niah" / "scores.json").exists()
