"""Candidates from a masked language model, against one word at a time by plain Transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from masked_models import ANIMALS, FOODS, PLACES, VOCABULARY, random_model, sentence, tokenizer_in, trained_model
from tiny_encoders import _EXTRA, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    set_seed,
)

from bert_emd.errors import UserError
from bert_emd.models import masked_lm
from bert_emd.models.masked_lm import MaskedWords, load_encoder
from bert_emd.models.vocabulary import Vocabulary

CONTENT = {*ANIMALS, *FOODS, *PLACES, "moon", "sun", "ate"}


def allowed(word: str) -> bool:
    return word in CONTENT


def spans_of(text: str) -> list[tuple[int, int]]:
    """Every word of content, by plain search."""
    spans, at = [], 0
    for part in text.split(" "):
        word = part.strip(".,!'")
        if word.lower() in CONTENT | {"moonlight", "suns"}:
            start = text.index(word, at)
            spans.append((start, start + len(word)))
        at += len(part) + 1
    return spans


@torch.no_grad()
def one_at_a_time(model, tokenizer, text, span, count, *, pair):
    """The published procedure: a forward of its own for the word, every position's scores, a full sort."""
    before, word, after = text[: span[0]], text[span[0] : span[1]], text[span[1] :]
    pieces = tokenizer.tokenize(word)
    if len(pieces) > 1:
        return None
    first = ["[CLS]", *tokenizer.tokenize(before), "[MASK]", *tokenizer.tokenize(after), "[SEP]"]
    second = [*tokenizer.tokenize(text), "[SEP]"] if pair else []
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(first + second)])
    kinds = torch.tensor([[0] * len(first) + [1] * len(second)])
    scores = model(input_ids=ids, token_type_ids=kinds).logits[0, first.index("[MASK]")]
    chosen = []
    for token in tokenizer.convert_ids_to_tokens(scores.argsort(descending=True).tolist()):
        if token in CONTENT and token != word.lower() and len(chosen) < count:
            chosen.append(token)
    return tuple(chosen)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    return tokenizer_in(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def folder(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("random")
    random_model().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


TEXTS = [
    "the dog ate the bread in the garden",
    "The Dog, and the moonlight!",
    "cat",
    "the suns ate moon in the forest . the forest's bear",
    *(sentence(random.Random(i)) + " and the goat" * (i % 4) for i in range(30)),
]


@pytest.mark.parametrize("text_input", ["pair", "alone"])
def test_batches_give_what_one_word_at_a_time_gives(folder, tokenizer, text_input, monkeypatch):
    encoder = load_encoder(str(folder), "the model", head=True)
    plain = AutoModelForMaskedLM.from_pretrained(folder).eval()
    masked = MaskedWords(encoder, count=4, limit=64, allowed=allowed, text_input=text_input)
    spans = [spans_of(text) for text in TEXTS]
    found = masked.of(TEXTS, spans)
    expected = [
        [one_at_a_time(plain, tokenizer, text, span, 4, pair=text_input == "pair") for span in part]
        for text, part in zip(TEXTS, spans, strict=True)
    ]
    assert found == expected
    assert sum(candidates is None for part in found for candidates in part) == 2  # moonlight and suns are two pieces
    # Neither the batches nor the other texts matter.
    monkeypatch.setattr(masked_lm, "_TOKENS", 60)
    assert masked.of(TEXTS, spans) == expected
    assert masked.of(TEXTS[5:9], spans[5:9]) == expected[5:9]
    assert masked.of([], []) == []


def test_a_model_that_has_learnt_what_stands_where_proposes_just_that(tokenizer, tmp_path):
    trained_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), "the model", head=None)
    assert encoder.has_head
    masked = MaskedWords(encoder, count=5, limit=64, allowed=allowed, text_input="alone")
    text = "The Dog ate the bread in the garden"
    (found,) = masked.of([text], [[(4, 7), (16, 21), (29, 35)]])
    for word, candidates, kind in zip(("dog", "bread", "garden"), found, (ANIMALS, FOODS, PLACES), strict=True):
        assert set(candidates) == set(kind) - {word}


def test_words_behind_the_limit_get_none(folder):
    encoder = load_encoder(str(folder), "the model", head=True)
    text = "the dog ate the bread in the garden"
    masked = MaskedWords(encoder, count=3, limit=5, allowed=allowed)
    (found,) = masked.of([text], [[(4, 7), (16, 21), (29, 35)]])
    assert [bool(candidates) for candidates in found] == [True, True, False]
    # The model's own 80 positions bound a pair of long texts; and a text of megabytes does no harm.
    masked = MaskedWords(encoder, count=3, limit=500, allowed=allowed)
    long = "the dog ate " * 60
    (found,) = masked.of([long], [[(12 * i + 4, 12 * i + 7) for i in range(60)]])
    assert 10 <= sum(map(bool, found)) <= 13


def test_bfloat16_gives_nearly_the_same(folder):
    encoder = load_encoder(str(folder), "the model", head=True)
    spans = [spans_of(text) for text in TEXTS]
    full, half = (
        MaskedWords(encoder, count=4, limit=64, allowed=allowed, bf16=bf16).of(TEXTS, spans) for bf16 in (False, True)
    )
    pairs = [(set(a or ()), set(b or ())) for x, y in zip(full, half, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(len(a & b) for a, b in pairs) / sum(len(a) for a, _ in pairs) > 0.9


@pytest.mark.parametrize("kind", ["roberta", "electra", "albert", "distilbert", "modernbert", "mpnet", "deberta-v2"])
def test_other_architectures_score_the_masked_place_alone_as_they_score_all(kind, tokenizer, tmp_path):
    names = (
        {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
        if kind == "distilbert"
        else {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    )
    sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 80, "initializer_range": 0.3}
    set_seed(1)
    config = AutoConfig.for_model(kind, **(sizes | names | _EXTRA.get(kind, {})))
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    slim = BertTokenizerFast(vocab=str(vocab_of(tmp_path)), model_input_names=["input_ids", "attention_mask"])
    slim.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), "the model", head=True)
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    text, span = "the dog ate the bread", (4, 7)
    found = MaskedWords(encoder, count=6, limit=64, allowed=allowed, text_input="alone").of([text], [[span]])
    ids = torch.tensor([slim("the [MASK] ate the bread")["input_ids"]])
    with torch.no_grad():
        scores = plain(input_ids=ids).logits[0, 2]
    order = slim.convert_ids_to_tokens(scores.argsort(descending=True).tolist())
    assert found == [[tuple([token for token in order if token in CONTENT and token != "dog"][:6])]]


def vocab_of(folder: Path) -> Path:
    path = folder / "words.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def test_a_missing_head_is_never_made_up(tokenizer, tmp_path):
    model = random_model()
    model.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is no masked language model \(cls\..* is not in its weights\).*embeddings"):
        load_encoder(str(tmp_path), "the model", head=True)
    encoder = load_encoder(str(tmp_path), "the model", head=None)
    assert not encoder.has_head
    torch.testing.assert_close(torch.from_numpy(encoder.word_vectors()), model.get_input_embeddings().weight.detach())


def test_a_fine_tuned_classifier_has_no_such_head_either(words, tmp_path):
    tiny("bert").save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    assert not load_encoder(str(tmp_path), "the model", head=None).has_head


def test_models_without_what_is_needed_are_refused(folder, tokenizer, tmp_path):
    random_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"the model .*bare has no (vocabulary|usable tokenizer)"):
        load_encoder(str(tmp_path / "bare"), "the model", head=None)
    with pytest.raises(UserError, match="does not exist"):
        load_encoder(str(tmp_path / "nothing"), "the model", head=None)
    random_model(vocab_size=20).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match=rf"its tokenizer has {len(VOCABULARY)} tokens, its embeddings 20 rows"):
        load_encoder(str(tmp_path / "small"), "the model", head=None)


def bpe() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary as RoBERTa's: a space before a word is part of its token."""
    tokens = [
        "<pad>",
        "<unk>",
        "<s>",
        "</s>",
        "<mask>",
        "dog",
        "Ġdog",
        "Ġcaf",
        "Ã©",
        "ĠcafÃ©",
        "Ġ",
        "Ġ3",
        "s",
        *map(chr, range(97, 123)),
    ]
    tokens = list(dict.fromkeys([*tokens, "Ã", "©"]))
    merges = [("Ġ", "d"), ("o", "g")]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate([*tokens, "Ġd", "og"])}, merges, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
    )


def test_which_tokens_are_words(tokenizer):
    words = Vocabulary(tokenizer)
    assert [w for w in words.words if w] == [*ANIMALS, *FOODS, *PLACES, "the", "in", "ate", "s", "and", "moon", "sun"]
    assert [[words.tokens[i] for i in ids] for ids in words.pieces(["Dog", "moonlight"])] == [
        ["dog"],
        ["moon", "##light"],
    ]
    spaced = Vocabulary(bpe())
    assert [w for w in spaced.words if w] == ["dog", "caf", "café", "d"]
