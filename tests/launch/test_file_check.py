"""What `shoal cluster check` says of a file that is not ready, and on which line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.processes import finish, start

from shoal.errors import ClusterError
from shoal_ray.launch.cluster_file import ClusterFile
from shoal_ray.launch.file_check import check_file
from shoal_ray.launch.findings import Finding

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "cluster.yaml").read_text()
NAME = "\ncluster_name: shoal\n"
AWS = ROOT / "distributed/shoal_ray/launch/cluster-aws.yaml"

Filled = Callable[..., Path]


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filled:
    """Return ``filled(old, new, …)``: the shipped file with addresses, key and token, and these replacements."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    for name, content in (
        (".ssh/id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----\n"),
        (".ray/auth_token", "0" * 64),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)

    def fill(*replacements: str) -> Path:
        text = SHIPPED.replace("192.0.2.", "10.9.8.")
        for old, new in zip(replacements[::2], replacements[1::2], strict=True):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "cluster.yaml").write_text(text)
        return tmp_path / "cluster.yaml"

    return fill


def missing(path: Path) -> list[Finding]:
    return [finding for finding in check_file(ClusterFile.read(path)) if not finding.good]


def line_of(path: Path, start_of_line: str) -> str:
    [number] = [n for n, line in enumerate(path.read_text().splitlines(), 1) if line.startswith(start_of_line)]
    return f"{path.name}:{number}"


def test_the_shipped_file_wants_addresses_and_nothing_else_of_it(filled: Filled) -> None:
    assert missing(filled()) == []
    (path := filled()).write_text(SHIPPED)
    found = missing(path)
    assert [finding.what for finding in found] == ["address"] * 3
    head = line_of(path, "  head_ip:")
    assert found[0].where == head
    assert "put that in" in found[0].remedy


def test_any_number_of_workers_is_right(filled: Filled) -> None:
    for workers in ("[]", "[10.9.8.11]", "[10.9.8.11, 10.9.8.12, 10.9.8.13]"):
        assert missing(filled("[10.9.8.11, 10.9.8.12]", workers)) == []


@pytest.mark.parametrize(
    ("old", "new", "line", "what", "found"),
    [
        (NAME, f"{NAME}max_workers: 3\n", "max_workers:", "max_workers", "3, but 2 worker_ips"),
        (NAME, f"{NAME}max_worker: 2\n", "max_worker:", "schema", "'max_worker' was unexpected"),
        (NAME, f"{NAME}min_workers: two\n", "min_workers:", "min_workers", "two, but 2 worker_ips"),
        ("10.9.8.11, 10", "10.9.8.10, 10", "  head_ip:", "address", "10.9.8.10: given twice"),
        ("10.9.8.11, 10", "'-oProxyCommand=x', 10", "  worker_ips:", "address", "neither an address nor a name"),
        ("10.9.8.11, 10", "127.0.0.1, 10", "  worker_ips:", "address", "leads nowhere"),
        ("  head_ip: 10.9.8.10\n", "", "provider:", "provider", "no head_ip"),
        ("ssh_user: ubuntu", "ssh_user: 'a b'", "  ssh_user:", "ssh user", "'a b' is no user's name"),
        ("  ssh_user: ubuntu\n", "", "auth:", "ssh user", "none"),
        ("id_ed25519 ", "id_rsa ", "  ssh_private_key:", "ssh key", "~/.ssh/id_rsa: No such file or directory"),
        ("src: src", "src: sources", "  ~/shoal/src:", "file mount", "sources: not there"),
        ("  ~/.ray/auth_token: ~/.ray/auth_token ", "  ~/x: src ", "file_mounts:", "token", "no file_mounts entry"),
        ("type: local", "type: lokal", "  type:", "schema", "lokal"),
    ],
)
def test_each_slip_is_named_with_its_line(old: str, new: str, line: str, what: str, found: str, filled: Filled) -> None:
    path = filled(old, new)
    finding = next(each for each in missing(path) if each.what == what)
    assert found in finding.found
    assert finding.where == line_of(path, line)
    assert finding.remedy


LOGIN = "  ssh_user: ubuntu\n  ssh_private_key: ~/.ssh/id_ed25519   # the head gets a copy: it is the head that logs in\
 to the workers\n"


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        (LOGIN, "", "auth:", "auth is empty, and has to be a mapping"),
        (LOGIN, "  - ubuntu\n", "auth:", r"auth is \['ubuntu'\], and has to be a mapping"),
        ("key: ~/.ssh/id_ed25519 ", "key: 3 ", "  ssh_private_key:", "ssh_private_key is 3, and has to be text"),
        ("user: ubuntu", "user: 1000", "  ssh_user:", "ssh_user is 1000, and has to be text"),
        ("head_ip: 10.9.8.10", "head_ip:", "  head_ip:", "head_ip is empty, and has to be text"),
        ("[10.9.8.11, 10.9.8.12]", "10.9.8.11", "  worker_ips:", "worker_ips is '10.9.8.11', and has to be a list"),
        ("10.9.8.11, 10", "10.9, 10", "  worker_ips:", "worker_ips: 0 is 10.9, and has to be text"),
        ("src: src", "src: [src]", "  ~/shoal/src:", r"file_mounts: ~/shoal/src is \['src'\], and has to be text"),
        ("type: local", "type:", "  type:", "provider.type is empty"),
    ],
)
def test_a_part_of_another_kind_is_refused(old: str, new: str, line: str, said: str, filled: Filled) -> None:
    path = filled(old, new)
    with pytest.raises(ClusterError, match=rf"^{line_of(path, line)}: .*{said}.*; ."):
        ClusterFile.read(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file_mounts", "[src]"),
        ("file_mounts", ""),
        ("head_start_ray_commands", ""),
        ("head_start_ray_commands", "ray start"),
        ("head_start_ray_commands", "{ray: start}"),
    ],
)
def test_a_section_of_another_kind_is_refused(key: str, value: str, filled: Filled) -> None:
    path = filled()
    path.write_text(re.sub(rf"(?m)^{key}:\n(?:(?: .*)?\n)+?(?=\S)", f"{key}: {value}\n", path.read_text()))
    with pytest.raises(ClusterError, match=f"{line_of(path, key)}: {key} is .*, and has to be a "):
        ClusterFile.read(path)


def test_a_path_of_a_user_that_there_is_not_is_not_there(filled: Filled) -> None:
    path = filled("key: ~/.ssh/id_ed25519 ", "key: ~no-such-user/key ", "src: src", "src: ~no-such-user/src")
    found = {finding.what: finding for finding in missing(path)}
    assert found.keys() == {"ssh key", "file mount"}
    assert found["ssh key"].remedy


def test_the_command_refuses_a_part_of_another_kind(filled: Filled) -> None:
    path = filled("  head_ip: 10.9.8.10", "  head_ip:", "[10.9.8.11, 10.9.8.12]", "[]")
    assert "head_ip is empty" in finish(start("cluster", "check", path), code=2)
    assert "head_ip is empty" in finish(start("cluster", "down", path), code=2)


def test_a_misspelt_key_names_its_neighbour(filled: Filled) -> None:
    [finding] = missing(filled("worker_start_ray_commands:", "worker_start_ray_comands:"))
    assert "did you mean 'worker_start_ray_commands'?" in finding.remedy


def test_ray_without_a_token_is_open_to_all(filled: Filled) -> None:
    path = filled()
    path.write_text(re.sub(r"    RAY_AUTH_MODE=token\n", "", path.read_text()))
    found = missing(path)
    assert [finding.what for finding in found] == ["token", "token"]
    assert "may run code" in found[0].found


@pytest.mark.parametrize("name", [".ssh/id_ed25519", ".ray/auth_token"])
def test_secrets_are_kept_from_others(name: str, filled: Filled, tmp_path: Path) -> None:
    path = filled()
    (tmp_path / name).chmod(0o640)
    [finding] = missing(path)
    assert (finding.found, finding.remedy) == (f"~/{name}: mode 640, others may read it", f"chmod 600 ~/{name}")
    (tmp_path / name).chmod(0o600)
    (tmp_path / name).write_text("\n")
    [finding] = missing(path)
    assert "empty" in finding.found
    (tmp_path / name).unlink()
    [finding] = missing(path)
    assert "No such file" in finding.found


def test_the_public_half_of_a_key_is_no_key(filled: Filled, tmp_path: Path) -> None:
    (tmp_path / ".ssh/id_ed25519").write_text("ssh-ed25519 AAAA me@here\n")
    [finding] = missing(filled())
    assert "no private key" in finding.found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\nb: 3\n", r"cluster.yaml:2: not YAML"),
        ("a: 1\nb:\n  c: 2\n  c: 3\n", r"cluster.yaml:4: c is given on line 3 already"),
        ("- a\n- b\n", "no mapping"),
        ("", "no mapping"),
        ("a: \x00\n", "not YAML"),
    ],
)
def test_what_is_no_launcher_s_file_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError, match=said):
        ClusterFile.read(path)


def test_the_file_for_aws_wants_what_stands_for_the_reader_s_own(filled: Filled) -> None:
    filled()  # a token
    found = missing(AWS)
    assert {finding.what for finding in found} == {"to be filled in"}
    assert {finding.found for finding in found} == {"ami-00000000000000000", "111122223333"}
    lines = AWS.read_text().splitlines()
    assert all(finding.found in lines[int(finding.where.partition(":")[2]) - 1] for finding in found)


def test_the_command_prints_findings_and_leaves_with_2(filled: Filled) -> None:
    path = filled(NAME, f"{NAME}max_workers: 4\n")
    said = finish(start("cluster", "check", path, "--no-probe", "--json"), code=2)
    [bad] = [finding for finding in json.loads(said) if not finding["good"]]
    assert (bad["what"], bad["remedy"]) == ("max_workers", "say 2, or leave the line out")
    assert "missing" not in finish(start("cluster", "check", filled(), "--no-probe"))
