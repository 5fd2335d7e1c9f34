"""Cluster profiles: what ships is valid, and a mistake is told with its line."""

import json
from pathlib import Path

import pytest
import yaml

from clusters.executor import Capacity
from clusters.profile import SHIPPED, Profile, ProfileError, load_profile, shipped

INFINITE = float("inf")


def test_what_ships(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    profiles = {name: load_profile(name) for name in shipped()}
    assert set(profiles) == {"cloud", "existing", "gpu", "kuberay", "local"}
    assert all(profile.description for profile in profiles.values())
    assert [name for name, profile in profiles.items() if profile.address == "local"] == ["gpu", "local"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("description: x\nadress: auto\n", ":2: unknown key `adress`; did you mean `address`?"),
        ("zebra: 1\n", ":1: unknown key `zebra`; known: description, address"),
        ("address: auto\n\ncpus: many\n", ":3: cpus: Input should be a valid integer"),
        ("memory: 64 apples\n", ":1: memory: could not interpret byte unit"),
        ("dashboard: head:8265\n", ":1: dashboard: String should match pattern"),
        ("env: [HF_TOKEN=abc]\n", ":1: env.0: expected only the name of a variable"),
        ("nodes: 3\n", "a local Ray is one node"),
        ("- a\n- b\n", ":1: expected `name: value` lines, found list"),
        ("a: [1\nb: 2\n", ":2: not YAML"),
        ("description: 2020-99-99\n", "not YAML: month must be in 1..12"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, text: str, problem: str):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(str(file))
    assert str(caught.value).startswith(str(file))
    assert problem in str(caught.value)


@pytest.mark.parametrize("address", ["head:6379", "[fd00::1]:6379", "ray://head:10001", "auto"])
def test_a_local_profile_joins_the_cluster_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert load_profile("local").address == address
    assert load_profile("kuberay").address == "auto"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "head", "head:6379\n"])
def test_an_address_in_the_environment_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ProfileError, match=r"variable RAY_ADDRESS is .* expected auto, local, HOST:PORT or ray://"):
        load_profile("local")
    assert load_profile("kuberay").address == "auto"


def test_capacity_is_known_without_connecting():
    profile = Profile(address="auto", nodes=3, cpus=8, gpus=2, memory="64GiB")
    assert profile.declared() == Capacity(8, 2, 64 * 2**30, 24, 6)
    assert Profile(address="auto", cpus=8).declared() == Capacity(8, INFINITE, INFINITE, 8, INFINITE)


def test_an_autoscaler_may_add_what_is_declared_and_no_more_is_believed():
    now = Capacity(2, 0, 1000, 2, 0)
    assert Profile(address="auto", nodes=3, cpus=8).widest(now) == Capacity(8, 0, 1000, 24, 0)
    assert Profile(address="auto").widest(now) == now
    assert Profile(cpus=8).widest(now) == now, "a local Ray has what it has"


def test_the_examples_are_what_they_say():
    """The schemas of KubeRay (ray.io/v1, v1.6) and of Ray's cluster launcher, as far as the examples use them."""
    import jsonschema
    import ray

    cluster = yaml.safe_load((SHIPPED / "examples" / "raycluster.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    assert len(images) == 1, "the head and the workers have one image"
    profile = load_profile("kuberay")
    assert profile.nodes == sum(group["maxReplicas"] for group in groups[1:])
    launcher = yaml.safe_load((SHIPPED / "examples" / "cloud-cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    assert launcher["max_workers"] == load_profile("cloud").nodes
