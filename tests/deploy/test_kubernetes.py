"""The manifests: valid for every version in support, and no more allowed than they must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from tests.deploy.staging import DEPLOY

DIRECTORY: Final = DEPLOY / "kubernetes"
NOT_KUBERNETES_OWN: Final = {"PodMonitor", "Kustomization"}
VERSIONS: Final = ("1.33", "1.35", "1.37")

Manifest = dict[str, Any]


def manifests() -> Iterator[Any]:
    for path in sorted(DIRECTORY.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield pytest.param(document, id=f"{path.stem}-{document['kind']}")


def pod(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]
    return spec if manifest["kind"] == "Pod" else spec["template"]["spec"]


OWN = [one for one in manifests() if one.values[0]["kind"] not in NOT_KUBERNETES_OWN]
PODS = [one for one in OWN if one.values[0]["kind"] in {"Pod", "DaemonSet"}]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", OWN)
def test_it_is_valid(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_an_unknown_field_would_be_told() -> None:
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "labls": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("manifest", PODS)
def test_a_pod_may_no_more_than_it_must(manifest: Manifest) -> None:
    """Pod Security `restricted`, but for the volumes of type hostPath."""
    spec = pod(manifest)
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostPID", "hostIPC", "hostNetwork"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        security = container["securityContext"]
        assert security == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


def test_what_runs_as_root_only_makes_a_directory() -> None:
    (root,) = [
        container for one in PODS for container in pod(one.values[0]).get("initContainers", [])
    ]
    assert root["command"][0] == "install"
    assert root["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["CHOWN", "FOWNER", "FSETID"],
    }


def test_core_has_no_rights_in_the_cluster() -> None:
    kinds = {one.values[0]["kind"] for one in OWN}
    assert not {kind for kind in kinds if "Role" in kind}


def test_images_name_no_registry() -> None:
    for one in PODS:
        spec = pod(one.values[0])
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["image"] == "vmsession:0.1.0"


def test_the_kustomization_names_files_that_are_there() -> None:
    (kustomization,) = yaml.safe_load_all((DIRECTORY / "kustomization.yaml").read_text())
    assert all((DIRECTORY / name).is_file() for name in kustomization["resources"])


def test_volumes_are_there_for_every_mount() -> None:
    for one in PODS:
        spec = pod(one.values[0])
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
