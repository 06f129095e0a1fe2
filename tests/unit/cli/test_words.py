"""`gear-dist words`: the vocabulary of a corpus's captions."""

import json

from gear_dist.cli.main import main
from gear_dist.models.text_encoders.words import read_vocabulary
from loader_cases import flat_image, write_corpus


def corpus(root, captions: list[list[str]]) -> str:
    samples = [
        {"png": flat_image(i), "cls": b"0", "json": json.dumps({"captions": c}).encode()}
        for i, c in enumerate(captions)
    ]
    return write_corpus(root, [samples[:2], samples[2:]])


def test_all_captions_of_all_shards_count(tmp_path, capsys):
    address = corpus(tmp_path / "corpus", [["red dot"], ["Red square", "a dot"], ["blue red"]])
    out = tmp_path / "words.json"
    assert main(["words", address, "--out", str(out), "--size", "3"]) == 0
    assert read_vocabulary(str(out)).words == ("a", "dot", "red")
    assert "generator.text_width=8" in capsys.readouterr().out


def test_a_corpus_without_captions(tmp_path, capsys):
    address = corpus(tmp_path / "corpus", [[], [], []])
    assert main(["words", address, "--out", str(tmp_path / "words.json")]) == 3
    assert "captions" in capsys.readouterr().err
    assert not (tmp_path / "words.json").exists()
