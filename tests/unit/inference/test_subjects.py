"""The words that ask `gear-dist sample` for one image's subject."""

from gear_dist.inference.subjects import ClassSubjects, PromptSubjects


def test_a_class_is_asked_for_by_name_where_it_has_one() -> None:
    """A name wins over an index that looks like it, and may begin with a dash."""
    subjects = ClassSubjects((0, 1, 2), ("3", "-x"))
    assert [subjects.words(i, 7)[0] for i in range(3)] == [
        "--classes=3",
        "--classes=-x",
        "--classes=2",
    ]


def test_a_prompt_that_begins_with_a_dash_is_no_option() -> None:
    assert PromptSubjects(("-dash",)).words(0, 7)[0] == "--prompt=-dash"
