"""The few features of kustomize that the tests build manifests with."""

import copy
import shutil
import subprocess

import pytest
import yaml

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: one, annotations: {a/b: x, c~d: y}}
spec:
  initContainers: [{name: first, image: tool}]
  containers:
    - {name: main, image: "tool:old", args: [a, b]}
    - {name: beside, image: toolbox}
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec: {containers: [{name: main, image: "registry/tool:old"}]}
"""
PATCH = """
- {op: replace, path: /metadata/annotations/a~1b, value: z}
- {op: add, path: /metadata/annotations/c~0d, value: w}
- {op: add, path: /spec/containers/0/args/1, value: between}
- {op: add, path: /spec/containers/0/args/0, value: before}
- {op: add, path: /spec/containers/0/args/-, value: last}
- {op: add, path: /spec/containers/0/args/5, value: behind}
- {op: replace, path: /spec/containers/1/name, value: aside}
"""
OVERLAY = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../base]
namespace: here
images: [{name: tool, newName: host/tool, newTag: new}]
generatorOptions: {disableNameSuffixHash: true}
configMapGenerator: [{name: flags, envs: [a.env, b.env]}]
patches: [{path: patch.yaml, target: {kind: Pod, name: one}}]
"""


@pytest.fixture
def overlay(tmp_path):
    files = {
        "base/pods.yaml": PODS,
        "base/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\n"
        "kind: Kustomization\nresources: [pods.yaml]\n",
        "over/kustomization.yaml": OVERLAY,
        "over/patch.yaml": PATCH,
        "over/a.env": "# why\nA=--x=1 --y=2\n\n",
        "over/b.env": "B_2=\nC=c\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path / "over"


def test_an_overlay_is_built(overlay, kustomize):
    one, two, flags = kustomize.build(overlay)
    assert one["metadata"]["annotations"] == {"a/b": "z", "c~d": "w"}
    main, beside = one["spec"]["containers"]
    assert main["args"] == ["before", "a", "between", "b", "last", "behind"]
    assert beside == {"name": "aside", "image": "toolbox"}
    assert main["image"] == one["spec"]["initContainers"][0]["image"] == "host/tool:new"
    assert two["spec"]["containers"][0]["image"] == "registry/tool:old"
    assert {one["metadata"]["namespace"] for one in (one, two, flags)} == {"here"}
    assert flags["data"] == {"A": "--x=1 --y=2", "B_2": "", "C": "c"}


def test_kubectl_builds_the_same(overlay, kustomize):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, with which the build of the tests is compared")
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def name(document):
        return document["metadata"]["name"]

    theirs = sorted(yaml.safe_load_all(done.stdout), key=name)
    assert sorted(kustomize.build(overlay), key=name) == theirs


@pytest.mark.parametrize(
    ("path", "op", "message"),
    [
        ("/a/3", "add", "no place '3'"),
        ("/a/2", "replace", "no place '2'"),
        ("/a/-", "replace", "no place '-'"),
        ("/a/-1", "add", "no place '-1'"),
        ("/a/00", "add", "no place '00'"),
        ("/a/-/x", "add", "no place '-'"),
        ("/b/c", "add", "there is no 'c'"),
        ("/c", "replace", "there is no 'c'"),
        ("/c/d", "add", "there is no 'c'"),
        ("a", "add", "does not begin with /"),
        ("", "replace", "does not begin with /"),
        ("/a", "remove", "what the operation remove does"),
    ],
)
def test_an_operation_on_what_is_not_there_is_refused(path, op, message, kustomize):
    document = {"a": [1, 2], "b": "text"}
    before = copy.deepcopy(document)
    with pytest.raises(kustomize.Refused, match=message):
        kustomize.apply({"op": op, "path": path, "value": 0}, document)
    assert document == before


@pytest.mark.parametrize(
    ("file", "right", "wrong", "message"),
    [
        ("kustomization.yaml", "v1beta1", "v1", "is not a kustomization of the known version"),
        ("../base/kustomization.yaml", "[pods.yaml]", "[pods.yaml, pods.yaml]", "there twice"),
        ("kustomization.yaml", "newTag:", "digest: x, newTag:", "what .'digest'. does"),
        ("kustomization.yaml", "newName: host/tool, ", "", "'newName'. is missing"),
        (
            "../base/pods.yaml",
            "---\napiVersion: v1\nkind: Pod",
            "---\napiVersion: v1\nkind: Node",
            "whether a Node has a namespace",
        ),
        ("kustomization.yaml", "name: one", "name: o.*", "is a pattern"),
        ("kustomization.yaml", "name: one", "name: two, namespace: x", "what .'namespace'. does"),
        ("kustomization.yaml", "path: patch.yaml", "patch: x", "what .'patch'. does"),
        ("kustomization.yaml", "envs:", "behavior: merge, envs:", "what .'behavior'. does"),
        ("patch.yaml", ", value: z", "", "'value'. is missing"),
        ("patch.yaml", "{op: replace,", "{op: replace, from: /a,", "what .'from'. does"),
        ("b.env", "C=c", "A=c", "'A=c' is not NAME=VALUE with a new name"),
        ("b.env", "C=c", "HOME", "'HOME' is not NAME=VALUE"),
    ],
)
def test_what_is_not_known_is_refused(file, right, wrong, message, overlay, kustomize):
    path = overlay / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    with pytest.raises(kustomize.Refused, match=message):
        kustomize.build(overlay)
