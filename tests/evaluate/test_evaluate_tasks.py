"""Needle and RULER-like tasks: read again from their own prompts, and answered from them."""

import collections
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from retrieval_sample import KINDS, corpus, greedy_over_spaces, loaded, spoken, story

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate import intervals, ruler, words
from ropewalk.evaluate import tasks as module
from ropewalk.evaluate.filler import NOISE, Text
from ropewalk.evaluate.plan import Replies
from ropewalk.evaluate.spec import Tasks
from ropewalk.evaluate.tasks import TASKS, Cell, build, plan

ESSAY = Text("Nobody came. It was late!\nThe lamp went out in the end; she did not mind. " * 9)
LENGTHS = (640, 1100)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LoadedTokenizer:
    return loaded(request.param, tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def cells(tokenizer: LoadedTokenizer) -> dict[tuple[str, int], Cell]:
    return {
        (task, length): build(task, length, 3, 5, ESSAY, tokenizer)
        for task in TASKS
        for length in LENGTHS
    }


def prompts_of(cell: Cell, tokenizer: LoadedTokenizer) -> list[str]:
    return [tokenizer.tokenizer.decode(case.ids.tolist()) for case in cell.cases]


def asked(prompt: str) -> str:
    """Return the question, the last line of a prompt."""
    return prompt.rsplit("\n", 1)[1]


def niah(prompt: str) -> set[str]:
    needles = re.findall(r"(?:The|One) special (\w+) of (\S+) is ([\w-]+)\.", prompt)
    question = asked(prompt)
    assert len({kind for kind, _, _ in needles}) == 1
    assert needles[0][0] in question
    keys = set(re.findall(r"[\w]+(?:-[\w]+)+", question.split("?")[0]))
    assert keys
    return {value for _, key, value in needles if key in keys}


def passkey(prompt: str) -> set[str]:
    found = re.search(
        r"\nThe pass key is (\d{5})\. Remember it\. (\d{5}) is the pass key\.\n", prompt
    )
    assert found is not None
    assert found[1] == found[2]
    assert asked(prompt) == "What is the pass key? The pass key is"
    return {found[1]}


def string_needles(prompt: str) -> set[str]:
    found = re.findall(r"One of the magic number is: (\d{6})\.", prompt)
    assert len(found) == 4
    return set(found)


def vt(prompt: str) -> set[str]:
    values: dict[str, str] = {}
    for name, value in re.findall(r"VAR ([A-Z]{5}) = ([A-Z0-9 ]+)\.", prompt):
        values[name] = values[value[4:]] if value.startswith("VAR ") else value
    wanted = re.findall(r"\d{5}", asked(prompt))
    assert len(set(wanted)) == 1
    return {name for name, value in values.items() if value == wanted[0]}


def cwe(prompt: str) -> set[str]:
    entries = re.findall(r"(\d+)\. ([a-z-]+)", prompt.split("\n")[1])
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    (*top, least), below = _ranked([word for _, word in entries], 10)
    assert least[1] > below
    return {word for word, _ in [*top, least]}


def fwe(prompt: str) -> set[str]:
    entries = [word for word in prompt.split("\n")[1].split(" ") if word != "...."]
    assert all(re.fullmatch("[a-z]{6}", word) for word in entries)
    (first, second, third), below = _ranked(entries, 3)
    assert first[1] > second[1] > third[1] > below
    return {first[0], second[0], third[0]}


def _ranked(entries: list[str], count: int) -> tuple[list[tuple[str, int]], int]:
    ranked = collections.Counter(entries).most_common()
    return ranked[:count], ranked[count][1] if len(ranked) > count else 0


def qa(prompt: str) -> set[str]:
    documents = re.findall(
        r"Document (\d+): (.+) lives in (\w+) and has been an? \w+ for \d+ years\. "
        r"\2 was taught by (.+)\.",
        prompt,
    )
    assert [int(number) for number, *_ in documents] == list(range(1, len(documents) + 1))
    homes = {name: home for _, name, home, _ in documents}
    teachers = {name: teacher for _, name, _, teacher in documents}
    assert len(homes) == len(documents)
    person = re.search(r"In which place does (the teacher of )?(\w+ \w+) live\?", asked(prompt))
    assert person is not None
    if person[1] is None:
        return {homes[person[2]]}
    assert homes[person[2]] != homes[teachers[person[2]]]
    return {homes[teachers[person[2]]]}


def _person(prompt: str) -> str:
    return re.findall(r"teacher of (\w+ \w+) live", asked(prompt))[0]


ANSWERS: dict[str, Callable[[str], set[str]]] = {
    "passkey": passkey,
    "string_needles": string_needles,
    "vt": vt,
    "cwe": cwe,
    "fwe": fwe,
    "qa_1": qa,
    "qa_2": qa,
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("task", TASKS)
def test_prompts_have_their_length_and_can_be_answered_from_themselves(
    task: str, length: int, cells: dict[tuple[str, int], Cell], tokenizer: LoadedTokenizer
) -> None:
    """Guards: references that are not what the text says, lengths off by a token or the room."""
    cell = cells[task, length]
    assert cell.dropped == ()
    assert cell.samples == (0, 1, 2)
    opening = [] if tokenizer.bos is None else [tokenizer.bos]
    for case, prompt in zip(cell.cases, prompts_of(cell, tokenizer), strict=True):
        assert len(case.ids) + cell.room == length
        assert case.ids.dtype == np.int64
        again = tokenizer.tokenizer.encode(prompt, add_special_tokens=False).ids
        assert case.ids.tolist() == opening + again
        assert set(case.references) == ANSWERS.get(task, niah)(prompt)
        assert len(set(case.references)) == len(case.references)
        around = prompt.split("\n", 1)[0] + asked(prompt)
        assert not any(reference.lower() in around.lower() for reference in case.references)
        answer = tokenizer.encode(" " + ", ".join(case.references))
        assert len(answer) <= cell.room


@pytest.mark.parametrize("task", [t for t in TASKS if t not in ("cwe", "fwe")])
def test_depths_are_where_the_needles_are_in_the_final_tokens(
    task: str, cells: dict[tuple[str, int], Cell], tokenizer: LoadedTokenizer
) -> None:
    """Guards: depths of a plan the tokens do not follow: a heatmap with needles elsewhere."""
    cell = cells[task, LENGTHS[1]]
    seen = set()
    for case, prompt in zip(cell.cases, prompts_of(cell, tokenizer), strict=True):
        needles = [
            line
            for line in re.findall(r"(?:The|One)[^.\n]*\.|VAR[^.\n]*\.|\w+ \w+ lives[^\n]*", prompt)
            if any(reference in line for reference in case.references)
            or (task == "qa_2" and line.startswith(_person(prompt)))
        ]
        starts = []
        for place, depth in zip(case.places, case.depths, strict=True):
            assert depth == place / len(case.ids)
            before = tokenizer.tokenizer.decode(case.ids[:place].tolist())
            after = tokenizer.tokenizer.decode(case.ids[: place + 1].tolist())
            inside = [n for n in needles if len(before.rstrip()) <= prompt.index(n) < len(after)]
            assert inside, (before[-30:], after[-30:], needles)
            starts.append(prompt.index(inside[0]))
        if task in ("vt", "string_needles"):
            assert starts == sorted(starts)
            assert len(set(starts)) == len(case.references)
        seen.update(case.places)
    assert len(seen) > 1


def test_every_sample_of_every_length_is_another(cells: dict[tuple[str, int], Cell]) -> None:
    """Guards: lengths that are compared on one lucky draw."""
    for task in TASKS:
        drawn = [cell.cases for (name, _), cell in cells.items() if name == task]
        references = [case.references for cases in drawn for case in cases]
        assert len(set(references)) == len(references), task


def test_string_needles_stand_one_in_each_quarter_of_one_text(tokenizer: LoadedTokenizer) -> None:
    """Guards: needles that bunch, the same numbers in every sample, another haystack each time."""
    cell = build("string_needles", 2400, 12, 5, ESSAY, tokenizer)
    places: list[list[float]] = []
    beginnings, numbers = set(), set()
    for case, prompt in zip(cell.cases, prompts_of(cell, tokenizer), strict=True):
        haystack = prompt.split("\n", 1)[1].rsplit("\n", 1)[0]
        whole = re.sub(r"One of the magic number is: \d{6}\.\s", "", haystack)
        beginnings.add(whole[:400])
        numbers.update(case.references)
        shares = []
        for reference in case.references:
            at = haystack.index(f"One of the magic number is: {reference}")
            before = re.sub(r"One of the magic number is: \d{6}\.\s", "", haystack[:at])
            shares.append(len(before) / len(whole))
        places.append(shares)
    assert len(beginnings) == 1
    assert len(numbers) == 48
    for quarter in range(4):
        found = [row[quarter] for row in places]
        # a needle moves back to the beginning of its sentence, which is short here
        assert all(quarter / 4 - 0.05 < share <= (quarter + 1) / 4 for share in found)
        assert max(found) - min(found) > 0.1


def test_depths_are_spread_over_the_whole_text(tokenizer: LoadedTokenizer) -> None:
    """Guards: needles that all stand in one half: every sample at its own depth."""
    for task in ("passkey", "niah_single_1", "niah_single_2", "niah_multikey_2", "qa_1"):
        cell = build(task, 1400, 40, 1, ESSAY, tokenizer)
        thirds = collections.Counter(int(3 * case.depths[0]) for case in cell.cases)
        assert min(thirds[third] for third in range(3)) >= 5, task


def test_a_sample_does_not_depend_on_what_else_is_asked(
    tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    """Guards: texts that change with the number of samples, other tasks, or a global generator."""
    tokens = story(tokenizer, tmp_path)
    np.random.seed(1)
    few = plan(Tasks(tasks=("vt",), lengths=(700,), samples=2), 3, tokens, tokenizer)
    np.random.seed(2)
    state = np.random.get_state()[1].tolist()
    many = plan(
        Tasks(tasks=("niah_single_2", "vt", "cwe"), lengths=(640, 700), samples=4),
        3,
        tokens,
        tokenizer,
    )
    assert np.random.get_state()[1].tolist() == state
    assert list(few.prompts) == ["vt-700"]
    assert list(many.prompts) == [
        f"{task}-{length}" for task in ("niah_single_2", "vt", "cwe") for length in (640, 700)
    ]
    for number in range(2):
        alone, among = few.prompts["vt-700"], many.prompts["vt-700"]
        assert alone.ids[number].tolist() == among.ids[number].tolist()
        assert alone.names[number] == among.names[number] == f"vt/700/{number}"
        assert alone.new_tokens == among.new_tokens
    texts = [tuple(ids.tolist()) for prompts in many.prompts.values() for ids in prompts.ids]
    assert len(set(texts)) == len(texts)
    other = plan(Tasks(tasks=("vt",), lengths=(700,), samples=2), 4, tokens, tokenizer)
    assert other.prompts["vt-700"].ids[0].tolist() != few.prompts["vt-700"].ids[0].tolist()


def test_what_does_not_fit_is_dropped_with_the_reason(
    tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    """Guards: samples that vanish, texts cut to fit, a mean over fewer samples than it seems."""
    tokens = story(tokenizer, tmp_path)
    protocol = Tasks(tasks=("niah_multiquery", "passkey"), lengths=(300, 700), samples=3)
    planned = plan(protocol, 0, tokens, tokenizer)
    assert sorted(planned.prompts) == ["niah_multiquery-700", "passkey-300", "passkey-700"]
    assert len(planned.dropped) == 3
    for number, text in enumerate(planned.dropped):
        found = re.fullmatch(
            rf"niah_multiquery/300/{number}: the shortest prompt has (\d+) tokens, there is room "
            r"for (\d+)",
            text,
        )
        assert found is not None
        assert int(found[1]) > int(found[2])
    with pytest.raises(StageError, match="no sample can be made: niah_multiquery/300/0: the shor"):
        plan(Tasks(tasks=("niah_multiquery",), lengths=(300,), samples=3), 0, tokens, tokenizer)


def test_some_samples_of_a_cell_may_be_dropped(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    """Guards: replies that move to another sample where one is missing."""
    lengths = {
        length: build("niah_multivalue", length, 12, 0, ESSAY, tokenizer)
        for length in range(240, 330, 3)
    }
    cell = next(cell for cell in lengths.values() if 0 < len(cell.dropped) < 12)
    assert len(cell.samples) + len(cell.dropped) == 12
    dropped = {int(text.split(":")[0].rsplit("/", 1)[1]) for text in cell.dropped}
    assert dropped | set(cell.samples) == set(range(12))
    replies = spoken([", ".join(case.references) for case in cell.cases], tokenizer)
    found = module.summarise([cell], tokenizer, {}, {cell.label: replies})["cells"][cell.name]
    assert found["samples"] == list(cell.samples)
    assert found["scores"] == [1.0] * len(cell.samples)


def test_an_answer_that_changes_the_prompt_is_dropped(tmp_path: Path) -> None:
    """Guards: prompts that end in the middle of a token, which no decoding can continue."""
    tokenizer = greedy_over_spaces(tmp_path)
    cell = build("passkey", 700, 2, 0, ESSAY, tokenizer)
    assert cell.cases == ()
    assert [text.split(": ")[1] for text in cell.dropped] == [
        "the tokens of the prompt change when the answer follows"
    ] * 2


def test_an_unknown_task_is_an_error(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    """Guards: a misspelt task that is skipped."""
    with pytest.raises(StageError, match=r"there is no 'niah'; there are passkey, string_needles"):
        plan(Tasks(tasks=("niah", "vt"), lengths=(700,)), 0, story(tokenizer, tmp_path), tokenizer)


def test_essays_are_the_corpus_and_other_tasks_need_none(
    tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    """Guards: a haystack of noise where a text was asked for, special tokens in it."""
    tokens = story(tokenizer, tmp_path / "story")
    protocol = Tasks(tasks=("niah_single_2", "niah_single_1"), lengths=(700,), samples=3)
    planned = plan(protocol, 0, tokens, tokenizer)
    essays = [
        tokenizer.tokenizer.decode(i.tolist()) for i in planned.prompts["niah_single_2-700"].ids
    ]
    noise = [
        tokenizer.tokenizer.decode(i.tolist()) for i in planned.prompts["niah_single_1-700"].ids
    ]
    assert all("The keeper of the light went down" in text for text in essays)
    assert all("grass" not in text for text in essays)
    assert all("grass" in text for text in noise)
    opening = [] if tokenizer.bos is None else [tokenizer.bos]
    for prompts in planned.prompts.values():
        for ids in prompts.ids:
            special = {tokenizer.bos, tokenizer.eos}
            assert ids[: len(opening)].tolist() == opening
            assert not special & set(ids[len(opening) :].tolist())
    empty = corpus(tmp_path / "empty", [np.array([tokenizer.eos])])
    with pytest.raises(StageError, match="no tokens to cut filler from"):
        plan(protocol, 0, empty, tokenizer)
    assert plan(Tasks(tasks=("niah_single_1",), lengths=(700,), samples=1), 0, empty, tokenizer)


def test_scores_of_replies(cells: dict[tuple[str, int], Cell], tokenizer: LoadedTokenizer) -> None:
    """Guards: a task scored by another's rule, a success rate of shares, replies of other cells."""
    of_length = [cells[task, LENGTHS[0]] for task in TASKS]
    replies = {}
    for cell in of_length:
        texts = []
        for number, case in enumerate(cell.cases):
            given = [(), case.references[:1], case.references][number]
            texts.append(" and ".join(given).upper())
        replies[cell.label] = spoken(texts, tokenizer)
    found = module.summarise(of_length, tokenizer, {}, replies)["cells"]
    assert list(found) == [f"{task}/{LENGTHS[0]}" for task in TASKS]
    for cell in of_length:
        numbers, references = found[cell.name], cell.cases[0].references
        one = 1 / len(references)
        if cell.task == "string_needles":
            one = 0.0
        assert numbers["scores"] == pytest.approx([0.0, one, 1.0])
        assert numbers["mean"] == pytest.approx((1 + one) / 3)
        assert numbers["found"][0] == [False] * len(references)
        assert numbers["found"][1] == [True] + [False] * (len(references) - 1)
        assert numbers["found"][2] == [True] * len(references)
        assert numbers["new_tokens"] == cell.room
        assert numbers["length_tokens"] == cell.length
        assert numbers["replies"] == [
            tokenizer.tokenizer.decode(ids.tolist()) for ids in replies[cell.label].ids
        ]
        assert numbers["depths"] == [list(case.depths) for case in cell.cases]
        if cell.task not in ("cwe", "fwe", "qa_2"):  # the last has a second document, that leads on
            assert [len(d) for d in numbers["depths"]] == [len(references)] * 3
        binary = set(numbers["scores"]) <= {0.0, 1.0}
        assert ("successes" in numbers) == ("wilson" in numbers) == binary
        if binary:
            successes = int(sum(numbers["scores"]))
            expected = intervals.wilson(successes, 3)
            assert numbers["successes"] == successes
            assert numbers["wilson"] == [expected.low, expected.high]


def test_the_first_integer_decides_a_passkey(tokenizer: LoadedTokenizer) -> None:
    """Guards: PoSE's rule replaced by a looser one."""
    cell = build("passkey", 640, 3, 5, ESSAY, tokenizer)
    (a,), (b,), (c,) = (case.references for case in cell.cases)
    replies = spoken([f"{a}. Then 7", f"7, then {b}", f"{c}7"], tokenizer)
    found = module.summarise([cell], tokenizer, {}, {cell.label: replies})
    assert found["cells"][cell.name]["scores"] == [1.0, 0.0, 0.0]
    assert found["cells"][cell.name]["found"] == [[True], [True], [True]]


@pytest.mark.parametrize(
    ("task", "tokens"),
    [("niah_single_1", 128), ("vt", 30), ("cwe", 120), ("fwe", 50), ("qa_1", 32), ("passkey", 10)],
)
def test_long_texts_have_the_room_of_the_papers(
    tokenizer: LoadedTokenizer, task: str, tokens: int
) -> None:
    """Guards: answers cut off in the middle, or a room that depends on the samples drawn."""
    rooms = [module.room_of(task, length, tokenizer) for length in (256, 1024, 4096, 131_072)]
    assert rooms == sorted(rooms)
    assert rooms[-1] >= tokens
    assert rooms[-1] == tokens or rooms[0] == rooms[-1]
    assert rooms[0] < 110


def test_words_are_not_found_inside_one_another() -> None:
    """Guards: a reference found in a reply that names another word."""
    everything = [*words.ADJECTIVES, *words.NOUNS, *words.VERBS]
    assert everything == list(words.ALL)
    draft = ruler.cwe(np.random.default_rng(0), ESSAY)
    around = f"{draft.instruction} {NOISE} {draft.question}".lower()
    assert not [word for word in everything if word in around]
    assert len(set(everything)) == len(everything) > 600
    assert not [(a, b) for a in everything for b in everything if a != b and a in b]
    names = [*words.PLACES, *words.GIVEN_NAMES, *words.FAMILY_NAMES, *words.TRADES]
    assert len(set(names)) == len(names)
    places = [place.lower() for place in words.PLACES]
    assert not [(p, n) for p in places for n in names if p != n.lower() and p in n.lower()]


def test_made_up_words_have_the_frequencies_of_the_zeta_distribution() -> None:
    """Guards: ties among the words that are asked for, more words than the text has."""
    zeta = sum(1 / k**2 for k in range(1, 100_000))
    for size in (*range(20, 400), 5000, 100_000):
        counts = ruler.fwe_counts(size)
        assert counts[0] > counts[1] > counts[2] > max([*counts[3:], 0])
        assert sum(counts) < size
        assert counts == sorted(counts, reverse=True)
        for rank, count in enumerate(counts, start=2):
            assert -1 <= count - size / rank**2 / zeta <= 3


def test_lists_longer_than_the_words_join_them() -> None:
    """Guards: a long list that runs out of words, or in which a common word hides in another."""
    draft = ruler.cwe(np.random.default_rng(0), ESSAY)
    for size in (30, 599, 600, 601, 9000):
        entries = re.findall(r"\d+\. ([a-z-]+)", draft.haystack(size))
        assert len(entries) == size
        counts = collections.Counter(entries)
        common = {counts.pop(word) for word in draft.references}
        assert len(common) == 1
        assert common.pop() > max(counts.values())
        assert not [w for w in counts for c in draft.references if c in w]
        if size >= 600:
            assert set(sorted(counts.values())[2:]) <= {3}
    assert len(counts) > len(words.ALL)


def test_no_key_stands_for_two_values() -> None:
    """Guards: questions with two right answers, in a haystack of thousands of needles."""
    for task in ("niah_multikey_2", "niah_multikey_3"):
        haystack = TASKS[task].draw(np.random.default_rng(0), ESSAY).haystack(3000)
        pairs = re.findall(r"The special \w+ of (\S+) is (\S+)\.", haystack)
        assert len(pairs) == 3000
        assert len({key for key, _ in pairs} | {value for _, value in pairs}) == 6000


def test_the_pupil_never_lives_where_the_teacher_does() -> None:
    """Guards: questions over two documents that one document answers."""
    for seed in range(300):
        draft = TASKS["qa_2"].draw(np.random.default_rng(seed), ESSAY)
        assert qa(f"{draft.haystack(40)}\n{draft.question}") == set(draft.references)


def test_needles_move_to_where_a_line_begins() -> None:
    """Guards: needles in the middle of a sentence, lost text, order of needles turned round."""
    text = Text("First one. Second one!\nThird line without an end ")
    needles = [(0.9, "N3."), (0.0, "N1."), (0.3, "N2a."), (0.31, "N2b.")]
    for start in (0, 11, 23, 23 + 9 * len(text)):
        for characters in (0, 5, 48, 200):
            found = text.with_needles(start, characters, needles)
            rest = re.sub(r"N\d[ab]?\.\s", "", found)
            assert rest == text.piece(start, characters)
            assert len(rest) == characters
            order = re.findall(r"N\d[ab]?\.", found)
            assert order == ["N1.", "N2a.", "N2b.", "N3."] or characters == 5 or characters == 0
            for match in re.finditer(r"N\d[ab]?\.", found):
                before = re.sub(r"N\d[ab]?\.\s", "", found[: match.start()])
                assert before == "" or re.search(r"[.!] $|\n$|end $", before)
    assert text.piece(10_000, 7) == (text.piece(0, len(text)) * 300)[10_000 % len(text) :][:7]


def test_needles_in_a_text_without_lines_stand_between_words() -> None:
    """Guards: a corpus of one line whose needles all fall to its beginning."""
    text = Text("word " * 2000)
    found = text.with_needles(0, 6000, [(0.2, "A."), (0.5, "B.")])
    assert re.sub(r"[AB]\. ", "", found) == text.piece(0, 6000)
    assert abs(found.index("A. ") - 1200) < 10
    assert abs(found.index("B. ") - 3000) < 10
    solid = Text("x" * 5000)
    assert abs(solid.with_needles(0, 4000, [(0.5, "A.")]).index(" A. ") - 2000) < 10


def test_replies_are_bounded_in_the_result(tokenizer: LoadedTokenizer) -> None:
    """Guards: a result file that grows with what a model babbles."""
    cell = build("qa_1", 640, 1, 5, ESSAY, tokenizer)
    long = spoken(["la " * 2000 + cell.cases[0].references[0]], tokenizer)
    found = module.summarise([cell], tokenizer, {}, {cell.label: long})["cells"][cell.name]
    assert found["scores"] == [1.0]
    assert len(found["replies"][0]) < 1000
    empty = Replies(ids=[np.zeros(0, dtype=np.int64)])
    found = module.summarise([cell], tokenizer, {}, {cell.label: empty})["cells"][cell.name]
    assert (found["scores"], found["replies"]) == ([0.0], [""])
