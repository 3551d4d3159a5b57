"""Messages to tensors: placeholders become exactly the images' tokens, and what is learnt is exactly the answers."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing import ChatTemplate, Conversation, ImageError, InputError, Patcher, Processor, Tokenizer

TINY = Patcher(((28, 28), (56, 28), (28, 56), (56, 56)), tile=28, patch=14)
sizes = st.tuples(st.integers(1, 80), st.integers(1, 80))


@pytest.fixture(scope="session")
def processor(checkpoint: Path) -> Processor:
    return Processor.load(checkpoint, TINY)


def image(size: tuple[int, int], colour: str = "red") -> dict[str, Any]:
    return {"type": "image", "image": Image.new("RGB", size, colour)}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


@given(st.lists(st.one_of(sizes, st.sampled_from(["Look: ", "déjà vu\n", " "])), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_placeholders_expand(processor: Processor, content: list[Any]) -> None:
    parts = [text(item) if isinstance(item, str) else image(item) for item in content]
    inputs = processor([{"role": "user", "content": parts}])
    grids = [TINY.grid(*item) for item in content if not isinstance(item, str)]
    assert inputs.grids == grids
    assert inputs.tiles.shape == (sum(grid.tiles for grid in grids), 3, 28, 28)
    assert inputs.input_ids.dtype == torch.int64
    assert len(inputs) == inputs.input_ids.numel()
    assert inputs.image_tokens == sum(grid.tokens for grid in grids)

    image_id = processor.tokenizer.token_id("<image>")
    expected: list[int] = []
    remaining = iter(grids)
    for token in processor.tokenizer.encode(processor.template.render([{"role": "user", "content": parts}])):
        expected += [token] * (next(remaining).tokens if token == image_id else 1)
    assert inputs.input_ids.tolist() == expected


TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("tools", [None, [TIME]])
@pytest.mark.parametrize("begun", ["", "It is", " <end_of_sentence> in words", "Sure:\n\n"])
def test_an_answer_goes_on_from_the_last_message(processor: Processor, begun: str, tools: Any) -> None:
    asked = [{"role": "user", "content": [image((30, 30)), text("What is it?")]}]
    messages = [*asked, {"role": "assistant", "content": begun}]
    inputs = processor(messages, tools=tools, continue_final_message=True)
    prompt = processor(asked, tools=tools)
    count = len(prompt.input_ids)
    assert inputs.input_ids[:count].tolist() == prompt.input_ids.tolist()
    assert inputs.grids == prompt.grids
    rest = inputs.input_ids[count:].tolist()
    assert processor.tokenizer.decode(rest, skip_special_tokens=False) == begun
    assert processor.tokenizer.token_id("<end_of_sentence>") not in rest


def test_what_an_answer_cannot_go_on_from(processor: Processor) -> None:
    asked = {"role": "user", "content": "What is it?"}
    with pytest.raises(InputError, match="message 2: an assistant's message to go on from must be text only"):
        processor([asked, {"role": "assistant", "content": [image((30, 30))]}], continue_final_message=True)
    call = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    calls = [asked, {"role": "assistant", "content": None, "tool_calls": [call]}]
    for messages in (calls, [asked]):
        assert torch.equal(processor(messages, continue_final_message=True).input_ids, processor(messages).input_ids), (
            "calls are whole, and a question is no answer: another message comes"
        )


def test_transparent_images_lie_on_the_background(checkpoint: Path) -> None:
    """Clear black beside solid red."""
    picture = Image.new("RGBA", (28, 56))
    picture.paste((255, 0, 0, 255), (0, 0, 28, 28))
    conversation = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    for background, colour in (("white", (255, 255, 255)), ((1, 2, 3), (1, 2, 3)), (None, (0, 0, 0))):
        tiles = Processor.load(checkpoint, TINY, background=background)(conversation).tiles
        assert tiles[1].amax((1, 2)).tolist() == [255, 0, 0]
        assert tuple(tiles[2, :, 20, 20].tolist()) == colour
    with pytest.raises(InputError, match="background='whitish' is not a colour"):
        Processor.load(checkpoint, TINY, background="whitish")


def test_tiles_keep_the_images_order(processor: Processor) -> None:
    colours = ["red", "lime", "blue", "white", "black"]
    content = [image((20 + 9 * i, 30), colour) for i, colour in enumerate(colours)]
    inputs = processor([{"role": "user", "content": [*content[:2], text("and"), *content[2:]]}])
    expected = torch.cat([TINY(part["image"])[0] for part in content])
    assert torch.equal(inputs.tiles, expected)


def test_text_alone(processor: Processor) -> None:
    inputs = processor([{"role": "user", "content": "Hello"}])
    assert inputs.tiles.shape == (0, 3, 28, 28)
    assert inputs.grids == []
    assert inputs.image_tokens == 0
    without = processor([{"role": "user", "content": "Hello"}], add_generation_prompt=False)
    assert len(without) < len(inputs)
    assert torch.equal(inputs.input_ids[: len(without)], without.input_ids)


def test_ids_are_transformers(processor: Processor, tmp_path: Path) -> None:
    """What we save is a tokenizer that transformers loads and applies as we do."""
    transformers = pytest.importorskip("transformers")
    processor.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [text("Où  est-ce? 🙂")]},
        {"role": "assistant", "content": " Là."},
    ]
    for prompt in (True, False):
        theirs = peer.apply_chat_template(talk, add_generation_prompt=prompt, tokenize=True, return_dict=False)
        assert processor(talk, prompt).input_ids.tolist() == theirs
    assert peer.eos_token == "<end_of_sentence>"


def test_save_and_load(processor: Processor, tmp_path: Path) -> None:
    source = tmp_path / "source"
    processor.save(source)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"model_max_length": 40960000, "chat_template": "{{ eos_token }}{{ messages[0].content[0].text }}"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Processor.load(source, TINY)
    loaded.save(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text()) == config
    again = Processor.load(tmp_path / "copy", TINY)
    talk = [{"role": "user", "content": "Hello"}]
    assert again.tokenizer.decode(again(talk).input_ids.tolist(), False) == "<end_of_sentence>Hello"


def test_learning_mask(processor: Processor) -> None:
    talk = [
        {"role": "user", "content": [image((50, 20)), text("What is it?")]},
        {"role": "assistant", "content": "A red bar."},
        {"role": "user", "content": [text("And this?"), image((9, 9))]},
        {"role": "assistant", "content": "Ünique 🙂"},
    ]
    inputs, learn = processor.training(talk)
    assert learn.dtype == torch.bool
    assert learn.shape == inputs.input_ids.shape
    learnt = processor.tokenizer.decode(inputs.input_ids[learn].tolist(), skip_special_tokens=False)
    assert learnt == "A red bar.<end_of_sentence>Ünique 🙂<end_of_sentence>"
    assert torch.equal(inputs.input_ids, processor(talk, add_generation_prompt=False).input_ids)

    prompt = processor(talk[:1])
    assert torch.equal(inputs.input_ids[: len(prompt)], prompt.input_ids)
    assert not learn[: len(prompt)].any()
    assert learn[len(prompt)]


def test_what_is_learnt_follows_the_very_prompt(processor: Processor) -> None:
    """An answer that starts with newlines must not merge with the newline that ends the prompt."""
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\n\nHello"}]
    inputs, learn = processor.training(talk)
    prompt = processor(talk[:1]).input_ids
    assert torch.equal(inputs.input_ids[: len(prompt)], prompt)
    assert processor.tokenizer.decode(inputs.input_ids[learn].tolist(), False) == "\n\nHello<end_of_sentence>"


pieces = st.one_of(sizes, st.sampled_from(["Look: ", "déjà vu\n", "<image>", "<end_of_sentence>\n", "<begin", ""]))
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.lists(pieces, max_size=4)), min_size=1)


@given(turns, turns)
@settings(max_examples=60, deadline=None)
def test_a_continuation_is_the_rest_of_the_whole(processor: Processor, read: Any, more: Any) -> None:
    first, then = (
        [
            {"role": role, "content": [text(p) if isinstance(p, str) else image(p) for p in parts]}
            for role, parts in some
        ]
        for some in (read, more)
    )
    whole = processor([*first, *then])
    begun = processor(first, add_generation_prompt=False)
    # As a session has what it has read: without the images.
    rest = processor.continuation(Conversation(Conversation.of(first).messages, []), then)
    assert torch.equal(whole.input_ids, torch.cat((begun.input_ids, rest.input_ids)))
    assert whole.grids == [*begun.grids, *rest.grids]
    assert torch.equal(whole.tiles[len(begun.tiles[:]) :], rest.tiles[:])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}{{ '<beginning_of_sentence>' }}",  # no prefix of the longer one
        "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}",  # no control token at the cut
    ],
)
def test_templates_that_cannot_be_continued_are_refused(processor: Processor, template: str) -> None:
    other = Processor(processor.tokenizer, ChatTemplate(template), TINY)
    read = Conversation.of([{"role": "user", "content": "Hello"}])
    with pytest.raises(InputError, match="does not write a conversation as its beginning"):
        other.continuation(read, [{"role": "user", "content": "there"}])


def test_counts_must_agree(processor: Processor) -> None:
    double = Processor(processor.tokenizer, ChatTemplate("<image><image>{{ messages[0].content[-1].text }}"), TINY)
    with pytest.raises(InputError, match="2 <image> placeholders but 1 images were given"):
        double([{"role": "user", "content": [image((9, 9)), text("what does <image> mean?")]}])
    blind = Processor(processor.tokenizer, ChatTemplate("{{ messages[0].content[-1].text }}"), TINY)
    with pytest.raises(InputError, match="1 images were given but the prompt has 0 <image> placeholders"):
        blind([{"role": "user", "content": [image((9, 9)), text("Hi")]}])


def test_copies_work_alike(processor: Processor) -> None:
    talk = [{"role": "user", "content": [image((50, 20)), text("what does <image> mean?")]}]
    expected = processor(talk)
    for copied in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        inputs = copied(talk)
        assert torch.equal(inputs.input_ids, expected.input_ids)
        assert torch.equal(inputs.tiles, expected.tiles)
        assert copied.tokenizer.backend is not processor.tokenizer.backend


@pytest.mark.parametrize("messages", [None, 5, "Hi", b"Hi", [], [None], [{"role": "user"}], [{"content": "Hi"}]])
def test_what_is_no_conversation(processor: Processor, messages: Any) -> None:
    for use in (processor, processor.training, processor.segments):
        with pytest.raises(InputError, match="message"):
            use(messages)


def test_text_only_checkpoints(checkpoint: Path) -> None:
    processor = Processor.load(checkpoint, None)
    with pytest.raises(InputError, match="text-only"):
        processor([{"role": "user", "content": [image((9, 9))]}])
    inputs = processor([{"role": "user", "content": "the word <image>"}])
    assert inputs.tiles.shape[0] == 0
    assert inputs.grids == []


def test_image_token_must_exist(tokenizer: Tokenizer) -> None:
    processor = Processor(tokenizer, ChatTemplate(), TINY, image_token="<picture>")
    assert len(processor([{"role": "user", "content": "Hi"}])) > 0
    with pytest.raises(InputError, match="no <picture> token"):
        processor([{"role": "user", "content": [image((9, 9))]}])


def test_bad_images_are_named(processor: Processor) -> None:
    for content in ([image((9, 9)), {"type": "image", "image": b"?"}], [text("a"), image((9, 9)), image((0, 9))]):
        with pytest.raises(ImageError, match=r"^image 2: "):
            processor([{"role": "user", "content": content}])
    with pytest.raises(ImageError, match=r"^nowhere\.png: no such file"):
        processor([{"role": "user", "content": [{"type": "image", "image": "nowhere.png"}]}])
