"""Protects: ``FastLanguageModel`` answers as Transformers does, and refuses by name what it does not do."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tuneserve import FastLanguageModel
from tuneserve.errors import InputError
from tuneserve.fast import NativeModel

Make = Callable[..., Path]
END = 255


def write_tokenizer(directory: Path) -> None:
    """Write a tokenizer of 256 tokens: letters of bytes, and ``<end>``."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:END]
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<end>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture
def model_dir(make_llama: Make) -> Path:
    directory = make_llama(dtype=torch.float32, eos_token_id=END, pad_token_id=0)
    write_tokenizer(directory)
    return directory


def load(source: Path, **options: Any) -> tuple[NativeModel, Any]:
    return FastLanguageModel.from_pretrained(source, dtype=torch.float32, load_in_4bit=False, **options)


def reference(model_dir: Path, adapter: Path | None = None) -> Any:
    """Return Transformers' model, the adapter unmerged in PEFT's own layers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    if adapter is None:
        return model
    with warnings.catch_warnings(action="ignore"):
        return PeftModel.from_pretrained(model, str(adapter)).eval()


@pytest.fixture
def model(model_dir: Path) -> NativeModel:
    return FastLanguageModel.for_inference(load(model_dir)[0])


PROMPT = torch.tensor([[72, 5, 9, 40, 41]])


def continued(model: Any, **options: Any) -> list[int]:
    """Return what follows ``PROMPT``, of Transformers' model or of ours."""
    out = model.generate(input_ids=PROMPT, attention_mask=torch.ones_like(PROMPT), **options)
    assert torch.equal(out[:, : PROMPT.shape[1]], PROMPT)
    tokens: list[int] = out[0, PROMPT.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize("tuned", [False, True], ids=["base", "adapter"])
def test_greedy_is_that_of_transformers(tuned: bool, model_dir: Path, make_lora: Make) -> None:
    adapter = make_lora(model_dir, scale=0.3) if tuned else None
    ours, _ = load(adapter or model_dir)
    theirs = reference(model_dir, adapter)
    for options in ({"max_new_tokens": 24}, {"max_new_tokens": 24, "repetition_penalty": 1.3}):
        assert continued(ours, **options) == continued(theirs, do_sample=False, **options)
    if tuned:
        assert continued(ours, max_new_tokens=24) != continued(load(model_dir)[0], max_new_tokens=24)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_what_single_prompts_give(side: str, model: NativeModel) -> None:
    prompts = [[72, 5, 9], [7], list(range(40, 60))]
    width = max(map(len, prompts))
    ids, mask = torch.zeros(3, width, dtype=torch.int64), torch.zeros(3, width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if side == "left" else slice(len(prompt))
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    out = model.generate(ids, mask, max_new_tokens=16)
    assert torch.equal(out[:, :width], ids)
    for row, prompt in zip(out, prompts, strict=True):
        alone = model.generate(inputs=torch.tensor([prompt]), max_new_tokens=16)
        assert row[width:].tolist() == alone[0, len(prompt) :].tolist()


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_new_tokens": 3},
        {"max_length": 9},
        {"max_new_tokens": 12, "min_new_tokens": 12},
        {"max_new_tokens": 12, "min_new_tokens": None},
    ],
    ids=str,
)
def test_lengths_are_those_of_transformers(limits: dict[str, int], model_dir: Path, model: NativeModel) -> None:
    theirs = reference(model_dir)
    # A token that greedy decoding reaches, so that there is an end to hold back.
    ends = [continued(model, max_new_tokens=6)[-1]]
    expected = continued(theirs, do_sample=False, eos_token_id=ends, **limits)
    assert continued(model, eos_token_id=ends, **limits) == expected


def test_any_of_several_ends_ends_a_row_and_the_rest_is_padding(model_dir: Path, model: NativeModel) -> None:
    tokens = continued(model, max_new_tokens=10)
    ends = [254, tokens[4]]
    ids = torch.cat((PROMPT, torch.tensor([[1, 2, 3, 4, 5]])))
    out = model.generate(ids, max_new_tokens=10, eos_token_id=ends)
    expected = reference(model_dir).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, eos_token_id=ends, do_sample=False
    )
    assert torch.equal(out, expected)
    length = tokens.index(tokens[4]) + 1
    assert out[0, 5:].tolist() == tokens[:length] + [0] * (10 - length)
    assert (model.generate(ids, max_new_tokens=10, eos_token_id=ends, pad_token_id=9)[0, 5 + length :] == 9).all()


def test_generation_config_gives_the_defaults_of_a_call(model_dir: Path) -> None:
    settings = {"eos_token_id": END, "pad_token_id": 0, "max_new_tokens": 4, "repetition_penalty": 1.5}
    (model_dir / "generation_config.json").write_text(json.dumps(settings))
    ours = load(model_dir)[0]
    assert continued(ours) == continued(reference(model_dir))
    assert continued(ours, max_new_tokens=8)[:4] == continued(ours)
    assert len(continued(ours, max_length=11, eos_token_id=[])) == 6


@pytest.mark.parametrize("change", [{"temperature": "hot"}, {"max_new_tokens": [1]}, {"do_sample": 3}], ids=str)
def test_a_malformed_generation_config_is_refused(change: dict[str, Any], model_dir: Path) -> None:
    (model_dir / "generation_config.json").write_text(json.dumps(change))
    with pytest.raises(InputError, match=r"generation_config\.json has no usable generation settings"):
        load(model_dir)


def test_end_tokens_beyond_the_vocabulary_end_nothing(model_dir: Path) -> None:
    (model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, 9999]}))
    assert len(continued(load(model_dir)[0], max_new_tokens=2)) <= 2


def test_a_streamer_gets_the_prompt_then_each_token(model_dir: Path) -> None:
    from transformers import TextIteratorStreamer

    model, tokenizer = load(model_dir)
    text = tokenizer.decode(continued(model, max_new_tokens=12), skip_special_tokens=True)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30, skip_special_tokens=True)
    thread = Thread(target=lambda: model.generate(PROMPT, max_new_tokens=12, streamer=streamer))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == text
    assert text
    with pytest.raises(InputError, match="single row"):
        model.generate(PROMPT.repeat(2, 1), streamer=streamer)


def test_stop_strings_end_where_transformers_ends(model_dir: Path) -> None:
    model, tokenizer = load(model_dir)
    theirs = reference(model_dir)
    pieces = [tokenizer.decode([token]) for token in continued(model, max_new_tokens=20, eos_token_id=[])]
    start = next(index for index in range(3, 18) if "\ufffd" not in "".join(pieces[index : index + 2]))
    stop = "".join(pieces[start : start + 2])
    for stops in (stop, ["never written", stop]):
        options = {"max_new_tokens": 20, "stop_strings": stops, "tokenizer": tokenizer, "eos_token_id": 254}
        expected = continued(theirs, do_sample=False, **options)
        assert continued(model, **options) == expected
        assert len(expected) < 20


def test_a_special_token_can_be_a_stop_string(model_dir: Path, model: NativeModel) -> None:
    token = continued(model, max_new_tokens=6)[3]
    backend = json.loads((model_dir / "tokenizer.json").read_text())
    (letter,) = [text for text, index in backend["model"]["vocab"].items() if index == token]
    backend["added_tokens"].append({**backend["added_tokens"][0], "id": token, "content": letter})
    (model_dir / "tokenizer.json").write_text(json.dumps(backend))
    stopped = continued(load(model_dir)[0], max_new_tokens=6, stop_strings=[letter])
    assert stopped == continued(model, max_new_tokens=6, eos_token_id=token)


def test_samples_are_different_and_repeat_with_their_seed(model: NativeModel) -> None:
    def sample(**options: Any) -> torch.Tensor:
        return model.generate(PROMPT, do_sample=True, max_new_tokens=8, num_return_sequences=4, **options)

    out = sample(seed=7)
    assert out.shape == (4, PROMPT.shape[1] + 8)
    assert len({tuple(row.tolist()) for row in out}) == 4
    assert torch.equal(out, sample(seed=7))
    assert not torch.equal(out, sample(seed=99))
    torch.manual_seed(3)
    first = sample()
    torch.manual_seed(3)
    assert torch.equal(first, sample())
    assert model.generate(PROMPT, do_sample=True, top_k=1, max_new_tokens=8)[0, 5:].tolist() == continued(
        model, max_new_tokens=8
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beam": 4, "assistant_model": 3, "logits_processor": None}, "does not take assistant_model, num_beam;"),
        ({"past_key_values": ()}, "does not take past_key_values"),
        ({"unsupported": {"max_time": 3}}, "does not take unsupported"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2 is not supported; pass no_repeat_ngram_size=0"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True is not supported"),
        ({"num_beams": 2, "do_sample": True}, "do_sample cannot be had with num_beams"),
        ({"num_beams": 2, "early_stopping": "never", "min_length": 8}, "min_length, early_stopping cannot"),
        ({"num_beams": 2, "stopping_criteria": [bool]}, "stopping_criteria cannot"),
        ({"num_beams": 51}, "beam_width"),
        ({"num_return_sequences": 10**9, "do_sample": True}, "num_return_sequences"),
        ({"bad_words_ids": [[]]}, "bad_words"),
        ({"bad_words_ids": [[999]]}, "bad_words"),
        ({"bad_words_ids": 3}, "wrong type"),
        ({"typical_p": 0.0, "do_sample": True}, "typical_p"),
        ({"use_cache": False}, "use_cache=False"),
        ({"inputs": PROMPT}, "two names"),
        ({"input_ids": None}, "needs input_ids"),
        ({"input_ids": PROMPT[0]}, "needs input_ids"),
        ({"input_ids": PROMPT.float()}, "needs input_ids"),
        ({"input_ids": PROMPT[:0]}, "needs input_ids"),
        ({"attention_mask": torch.ones(1, 2)}, "attention_mask"),
        ({"attention_mask": torch.zeros_like(PROMPT)}, "no tokens"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"num_return_sequences": 2}, "do_sample=True"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "top_p": 2.0}, "top_p"),
        ({"temperature": "hot"}, "wrong type"),
        ({"max_new_tokens": 0}, "no room"),
        ({"max_length": 5}, "no room"),
        ({"eos_token_id": 256}, "stop_token_ids"),
    ],
)
def test_what_generate_cannot_do_is_refused(options: dict[str, Any], message: str, model: NativeModel) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(**{"input_ids": PROMPT, **options})
    assert continued(model, max_new_tokens=2)


@pytest.mark.parametrize(
    "options",
    [
        {"bad_words_ids": [[3], [7, 9], [END]]},
        {"suppress_tokens": [3, 4, 5]},
        {"min_length": 14},
        {"min_length": 9, "min_new_tokens": 10},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True},
        {"no_repeat_ngram_size": 0, "guidance_scale": 1.0, "output_scores": False, "logits_processor": None},
    ],
    ids=str,
)
def test_options_mean_what_they_mean_in_transformers(
    options: dict[str, Any], model_dir: Path, model: NativeModel
) -> None:
    greedy = continued(model, max_new_tokens=10, eos_token_id=254)
    if "bad_words_ids" in options or "suppress_tokens" in options:
        # Tokens that would come are those that may not.
        options = {name: _instead(value, greedy) for name, value in options.items()}
    ids = torch.cat((PROMPT, torch.tensor([[1, 2, 3, 4, 5]])))
    given = {"max_new_tokens": 12, "eos_token_id": [greedy[6]], "pad_token_id": 9, "do_sample": False, **options}
    expected = reference(model_dir).generate(ids, attention_mask=torch.ones_like(ids), **given)
    assert torch.equal(model.generate(ids, **given), expected)
    if "guidance_scale" not in options:
        plain = {name: value for name, value in given.items() if name not in options}
        assert not torch.equal(model.generate(ids, **plain), expected)


def _instead(value: Any, greedy: list[int]) -> Any:
    return [_instead(each, greedy) for each in value] if isinstance(value, list) else greedy[value % len(greedy)]


def test_typical_sampling_leaves_what_is_too_likely(model: NativeModel) -> None:
    first = {model.generate(PROMPT, do_sample=True, max_new_tokens=1, typical_p=0.01, top_k=0, seed=seed)[0, -1].item()
             for seed in range(12)}  # fmt: skip
    assert len(first) <= 3


def test_stopping_criteria_are_asked_after_each_token(model: NativeModel) -> None:
    from transformers import StoppingCriteriaList
    from transformers.generation import MaxLengthCriteria, StoppingCriteria

    class AtToken(StoppingCriteria):  # type: ignore[misc]
        def __init__(self, token: int) -> None:
            self.token = token

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return input_ids[:, -1] == self.token

    tokens = continued(model, max_new_tokens=10, eos_token_id=[])
    criteria = StoppingCriteriaList([MaxLengthCriteria(PROMPT.shape[1] + 7)])
    assert continued(model, max_new_tokens=10, eos_token_id=[], stopping_criteria=criteria) == tokens[:7]
    criteria.append(AtToken(tokens[3]))
    stopped = continued(model, max_new_tokens=10, eos_token_id=[], stopping_criteria=criteria)
    assert stopped == tokens[: tokens.index(tokens[3]) + 1]


def test_a_stop_string_can_begin_in_the_prompt(model_dir: Path) -> None:
    model, tokenizer = load(model_dir)
    prompt = tokenizer("abcabc", return_tensors="pt").input_ids
    (first,) = model.generate(prompt, max_new_tokens=1, eos_token_id=[])[0, -1:].tolist()
    letter = tokenizer.decode([first])
    for stop, length in (("abc" + letter, 1), ("c" + letter, 1), ("abc", 6), ("bcab", 6)):
        options = {"max_new_tokens": 6, "stop_strings": stop, "tokenizer": tokenizer}
        theirs = reference(model_dir).generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, eos_token_id=254, **options
        )
        ours = model.generate(prompt, eos_token_id=254, **options)
        assert torch.equal(ours, theirs)
        assert ours.shape[1] <= prompt.shape[1] + length


def test_what_a_file_asks_for_is_refused_when_used_unless_the_call_has_it_otherwise(model_dir: Path) -> None:
    (model_dir / "generation_config.json").write_text(json.dumps({"no_repeat_ngram_size": 3, "sequence_bias": None}))
    model, _ = load(model_dir)
    with pytest.raises(InputError, match="no_repeat_ngram_size=3 is not supported"):
        continued(model, max_new_tokens=2)
    assert len(continued(model, max_new_tokens=2, no_repeat_ngram_size=0, eos_token_id=[])) == 2


def test_every_setting_of_transformers_is_had_or_refused_or_changes_no_token() -> None:
    from transformers import GenerationConfig

    from tuneserve.native import GenerationSettings
    from tuneserve.native._settings import _UNSUPPORTED

    changes_no_token = {
        "_from_model_config", "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight",
        "assistant_lookbehind", "bos_token_id", "cache_config", "cache_implementation", "compile_config",
        "continuous_batching_config", "decoder_start_token_id", "disable_compile", "is_assistant", "low_memory",
        "max_cache_len", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
        "output_attentions", "output_hidden_states", "output_logits", "output_scores", "prefill_chunk_size",
        "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits", "speculation_type",
        "target_lookbehind", "transformers_version", "use_cache", "use_mtp",
    }  # fmt: skip
    had = {*GenerationSettings.__struct_fields__, *_UNSUPPORTED, "eos_token_id"}
    assert GenerationConfig().to_dict().keys() - had <= changes_no_token
    assert not had & changes_no_token


def test_training_and_unknown_options_are_refused(model_dir: Path, model: NativeModel) -> None:
    for method in (FastLanguageModel.for_training, FastLanguageModel.get_peft_model):
        with pytest.raises(InputError, match="train with Unsloth or PEFT"):
            method(model, r=16)
    for options, message in (
        ({"gpu_memory_utilization": 0.5}, "does not take gpu_memory_utilization"),
        ({"full_finetuning": True}, "full_finetuning=True"),
        ({"trust_remote_code": True}, "trust_remote_code=True"),
    ):
        with pytest.raises(InputError, match=message):
            load(model_dir, **options)
    with pytest.raises(InputError, match="from_pretrained"):
        FastLanguageModel.for_inference(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_the_merged_directory_is_the_tuned_model(make_llama: Make, make_lora: Make, tmp_path: Path) -> None:
    base = make_llama()
    write_tokenizer(base)
    adapter = make_lora(base, scale=0.3)
    model, tokenizer = load(adapter)
    model.save_pretrained_merged(tmp_path / "merged", tokenizer, save_method="merged_16bit")
    # PEFT adds in float32 here; one rounding of each weight makes it what is to be in the file.
    expected = reference(base, adapter).merge_and_unload()
    for weight in expected.parameters():
        weight.data = weight.data.bfloat16().float()
    merged = reference(tmp_path / "merged")
    with torch.inference_mode():
        torch.testing.assert_close(merged(PROMPT).logits, expected(PROMPT).logits, rtol=0, atol=1e-5)
    assert continued(load(tmp_path / "merged")[0], max_new_tokens=8) == continued(merged, max_new_tokens=8)
