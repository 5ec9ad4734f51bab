"""scripts/oracle.py: the blocks it forces are those of the fact, and are selected."""

from __future__ import annotations

import pytest

from infllm_cpp import Llama
from infllm_cpp.evaluation.haystack import Haystack, Sample
from infllm_cpp.evaluation.prose import load_prose
from infllm_cpp.evaluation.tasks import fill
from oracle import KINDS, answers, fact_blocks, select


@pytest.fixture
def sample(llm: Llama) -> Sample:
    """Prose with a fact where the local window of SMALL does not reach, read already."""
    sample = fill("needle", Haystack(llm, load_prose()), llm.n_ctx(), depth=0.3, seed=0)
    llm.eval(sample.tokens)
    return sample


def blocks_of(llm: Llama, sample: Sample) -> list[int]:
    config = llm.infllm
    assert config is not None
    fact = llm.tokenize(" " + sample.questions[0].answers[0], add_bos=False)
    return fact_blocks(config, sample.tokens, fact, len(sample.tokens))


def selected(llm: Llama, sample: Sample) -> list[list[int]]:
    """Selected blocks of each layer while the question is read, which is taken back."""
    events = {}
    llm.set_trace(lambda event: events.update({event.il: sorted(event.selected.tolist())}))
    llm.eval(sample.questions[0].tokens)
    llm.set_trace(None)
    llm.truncate(len(sample.tokens))
    return list(events.values())


def test_the_blocks_of_a_fact_hold_it(llm: Llama, sample: Sample) -> None:
    config = llm.infllm
    assert config is not None
    start = config.n_init + config.block_size * blocks_of(llm, sample)[0]
    end = config.n_init + config.block_size * (blocks_of(llm, sample)[-1] + 1)
    assert sample.questions[0].answers[0] in llm.detokenize(sample.tokens[start:end]).decode()


def test_forced_blocks_are_selected_in_all_layers_until_they_are_not_forced(
    llm: Llama, sample: Sample
) -> None:
    own = selected(llm, sample)
    forced = min(set(range(10)) - {block for blocks in own for block in blocks})  # in no layer
    select(llm, [forced])
    assert all(forced in blocks for blocks in selected(llm, sample))
    select(llm, None)
    assert selected(llm, sample) == own


def test_there_is_an_answer_of_every_kind(llm: Llama, sample: Sample) -> None:
    found, block = answers(llm, "needle", sample.tokens, sample.questions[0])
    assert tuple(found) == KINDS
    assert all(found.values())
    assert block.startswith("selected in ")
    assert llm.n_tokens == len(sample.tokens)
