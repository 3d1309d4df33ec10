"""A recipe's text: what plain YAML may hold, and what is refused before anything is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastdiff.choices.recipe.reading import MOST_BYTES, MOST_LEVELS, parse, read_bytes
from fastdiff.errors import RecipeError


def refusal(text: str | bytes) -> str:
    content = text.encode() if isinstance(text, str) else text
    with pytest.raises(RecipeError) as raised:
        parse(content, "team.yaml")
    assert raised.value.exit_code == 2
    head, *lines = str(raised.value).splitlines()
    assert head == "team.yaml can't be used as a recipe (1 problem)"
    return "\n".join(lines)


def test_values_know_their_lines() -> None:
    node = parse(
        b"format: 2\n\nchoices:\n  quant:\n    option: int8\n    skip: [a, 1, 1e-5, null]\n", "x"
    )
    assert node.plain == {
        "format": 2,
        "choices": {"quant": {"option": "int8", "skip": ["a", 1, 1e-5, None]}},
    }
    lines = {key: each.line for key, each in node.walk()}
    assert lines["format"] == 1
    assert lines["choices.quant.option"] == 5
    assert lines["choices.quant.skip[1]"] == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "line 2, b: has the tag tag:yaml.org,2002:python/object/apply:os.system, and..."),
        ("a: &x 1\nb: 2\n", "line 1, a: has an anchor (&), and a recipe has none"),
        ("a: 1\nb: *x\n", "line 2, b: is an alias (*), and a recipe has none"),
        ("a: 1\na: 2\n", "line 2, a: is here twice, first in line 1"),
        ("a: {b: 1, b: 1}\n", "line 1, a.b: is here twice, first in line 1"),
        ("a: 1\n---\nb: 2\n", "line 2: holds a second document"),
        ("%YAML 1.1\n---\na: 1\n", "line 1: has a %-directive, and a recipe is plain YAML"),
        ("<<: {a: 1}\n", "line 1: merges mappings (<<), and a recipe doesn't"),
        ("- a\n- b\n", "line 1: is no mapping of keys"),
        ("just words\n", "line 1: is no mapping of keys"),
        ("1: a\n", "line 1: has the key 1, which is no text"),
        ("a: .nan\n", "line 1, a: is no finite number: .nan"),
        ("a: -.inf\n", "line 1, a: is no finite number: -.inf"),
        ("a: 1e999\n", "line 1, a: is no finite number: 1e999"),
        ("a: [1\n", None),
        ("a: 'x\n", None),
        ("a: \x07\n", None),
    ],
)  # fmt: skip
def test_what_plain_yaml_has_not_is_refused_with_its_line(text: str, said: str | None) -> None:
    found = refusal(text)
    if said is None:
        assert "can't be read as YAML" in found
    else:
        unwrapped = " ".join(found.split())
        assert unwrapped.startswith(said.removesuffix("..."))
    assert "instead: " in found


def test_an_empty_file_is_refused() -> None:
    assert "is empty" in refusal("")
    assert "is empty" in refusal("# only a comment\n")


def test_bytes_that_are_no_text_are_refused() -> None:
    assert "it is no UTF-8 text" in refusal(b"a: \xff\xfe\n")


def test_levels_are_counted() -> None:
    deep = "a: " + "[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1)
    assert parse(deep.encode(), "x").plain["a"] is not None
    assert f"is nested deeper than {MOST_LEVELS} levels" in refusal("a: " + "[" * 10_000)
    assert f"is nested deeper than {MOST_LEVELS} levels" in refusal("{a: " * 10_000)


def test_values_are_counted() -> None:
    assert "has more than 4000 values" in refusal("a: [" + "1," * 60_000 + "]")


def test_a_number_of_a_million_digits_is_refused() -> None:
    assert "is no finite number: 999" in refusal("a: " + "9" * 100_000)


def test_a_date_and_a_quoted_number_are_texts() -> None:
    assert parse(b"a: 2026-11-21\nb: '1'\n", "x").plain == {"a": "2026-11-21", "b": "1"}


def test_control_characters_of_a_key_never_reach_the_screen() -> None:
    found = refusal('"a\\e[31m": 1\n"a\\e[31m": 2\n')
    assert "\x1b" not in found
    assert "a?[31m: is here twice" in found


def test_files_that_are_none(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none.yaml", "it is not there"),
        (tmp_path, "it is a folder, no file"),
        (Path("a\0b"), "it is not there"),
    ):
        with pytest.raises(RecipeError) as raised:
            read_bytes(path, "team.yaml")
        assert said in str(raised.value)


def test_a_file_of_any_size_is_read_no_further_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * MOST_BYTES)
    assert len(read_bytes(path, "x")) == MOST_BYTES
    path.write_bytes(b"#" * (MOST_BYTES + 1))
    with pytest.raises(RecipeError) as raised:
        read_bytes(path, "large.yaml")
    assert "it is larger than 256 kB, and a recipe is a page of text" in str(raised.value)
