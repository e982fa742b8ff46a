"""What is written to disk: complete, plain JSON, and nothing of the place it was made at."""

import getpass
import json
import socket
from pathlib import Path

from specrouter_llm.bench.machine import command_line, machine
from specrouter_llm.bench.result import result, write_result

FIELDS = {
    "cpu": str,
    "physical_cores": int | None,
    "logical_cores": int,
    "memory_gib": float,
    "accelerator": str | None,
    "torch_threads": int,
    "load_average": list | None,
    "system": str,
    "python": str,
    "torch": str,
    "transformers": str,
    "specrouter_llm": str,
    "date": str,
}


def test_the_machine_is_described():
    """Every field, with its type, and no other."""
    described = machine()
    assert set(FIELDS) == set(described)
    for name, kind in FIELDS.items():
        assert isinstance(described[name], kind), name


def test_a_command_keeps_no_folder():
    """Paths lose their folders; names of models that look like paths stay."""
    typed = ["/usr/bin/specrouter", "bench", "off", "-d", "demo/draft", "--prompts", "/home/me/my data/q.jsonl"]
    assert "specrouter bench off -d demo/draft --prompts PATH/q.jsonl" == command_line(typed)
    assert "specrouter --out=PATH/x.json ./y.json" == command_line(["specrouter", "--out=../up/x.json", "./y.json"])
    assert "specrouter PATH/z" == command_line(["specrouter", "~/z"])
    assert "specrouter -w 'PATH/q.jsonl#rag'" == command_line(["specrouter", "-w", "/data/q.jsonl#rag"])


def test_a_result_survives_the_disk(tmp_path):
    """Written, read again, equal; without the name of host, user or folder."""
    content = result("off", {"target": "demo"}, [{"batch": 1}], ["specrouter", "--out", str(tmp_path / "a.json")])
    path = tmp_path / "new" / "a.json"
    write_result(path, content)
    text = path.read_text(encoding="utf-8")
    assert content == json.loads(text)
    assert {"experiment", "format", "command", "machine", "settings", "rows"} == set(content)
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text or Path.home() == Path("/")
    assert socket.gethostname() not in (content["machine"], content["command"])
    assert all(getpass.getuser() != value for value in content["machine"].values())


def test_committed_results_name_no_folder():
    """Every result in docs/benchmarks is of the current format and holds no absolute path."""
    folder = Path(__file__).parents[2] / "docs" / "benchmarks" / "results"
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert {"experiment", "format", "command", "machine", "settings", "rows"} <= set(content), path.name
        for argument in content["command"].split():
            assert not argument.split("=")[-1].startswith(("/", "~")), path.name
