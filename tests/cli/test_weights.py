"""`salus weights` and `salus demo` as a script reads them: one JSON object on stdout."""

import json
import sys
from pathlib import Path

import pytest

from salus import cli
from salus.benchmark import demo as the_demo
from salus.nets import weights
from salus.nets.weights import PRETRAINED, Place, Verdict


@pytest.fixture
def answer(monkeypatch, capsys):
    """Run a command with --json: (exit code, what stdout holds)."""

    def run(*arguments: object) -> tuple[int, dict]:
        monkeypatch.setattr(sys, "argv", ["salus", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), json.loads(capsys.readouterr().out)

    return run


def test_list_says_where_each_lies(answer, monkeypatch):
    places = {"alexnet-tv": Place("shipped", Path("a.safetensors"))}
    monkeypatch.setattr(weights, "where", places.get)
    code, found = answer("weights", "list")
    assert code == 0
    assert list(found) == list(PRETRAINED)
    licence = PRETRAINED["alexnet-tv"].licence
    assert found["alexnet-tv"] == {"place": "shipped", "path": "a.safetensors", "licence": licence}
    assert found["vgg16-tv"]["place"] is found["vgg16-tv"]["path"] is None


def test_fetch_says_where_it_put_them(answer, monkeypatch):
    monkeypatch.setattr(weights, "fetch", lambda id: Path(f"{id}.safetensors"))
    assert answer("weights", "fetch", "vgg16-tv") == (0, {"id": "vgg16-tv", "path": "vgg16-tv.safetensors"})


@pytest.mark.parametrize("sound", [True, False])
def test_verify_gives_every_verdict_and_fails_on_a_bad_file(sound, answer, monkeypatch):
    verdicts = [
        Verdict("alexnet-tv", "cache", Path("a.safetensors"), sound, "as it is"),
        Verdict("vgg16-tv", "-", None, False, "missing"),
    ]
    monkeypatch.setattr(weights, "verify", lambda: verdicts)
    code, found = answer("weights", "verify")
    assert code == (0 if sound else 3)
    assert found["verdicts"] == [
        {"id": "alexnet-tv", "place": "cache", "path": "a.safetensors", "sound": sound, "message": "as it is"},
        {"id": "vgg16-tv", "place": "-", "path": None, "sound": False, "message": "missing"},
    ]


def test_demo_names_its_report(answer, monkeypatch, tmp_path):
    monkeypatch.setattr(the_demo, "demo", lambda out, **_: out / "report.html")
    assert answer("demo", "--out", tmp_path) == (0, {"report": str(tmp_path / "report.html")})
