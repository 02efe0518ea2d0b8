"""Every manifest holds only fields that there are, with values they may have.

Objects of Kubernetes itself are checked against its published schemas, those of JobSet and Kueue
against the fields of their documented types that a run like ours can have use for. A job inside a
JobSet is a job of Kubernetes. What is checked is what `kustomize.py` beside this file builds; where
`kubectl` is installed, that is compared with what it builds.
"""

import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

K8S = Path(__file__).resolve().parent.parent.parent / "launch" / "k8s"
FOLDERS = sorted(path.parent for path in K8S.rglob("kustomization.yaml"))
VERSION = "1.35"
# Of a field with a name that has dots, such as those of labels: any.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = {"type": "string", "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|k|[KMGTPE]i?)?$"}
RESOURCE = {"type": "string", "pattern": "^([a-z0-9.-]+/)?[a-z0-9-]+$"}


def record(required=(), **fields):
    """The schema of an object with these fields and no other."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def several(item, **limits):
    return {"type": "array", "items": item, "minItems": 1, "uniqueItems": True, **limits}


def kind(api, name, spec=None, **metadata):
    meta = record(["name"], name=NAME, labels=TEXTS, annotations=TEXTS, **metadata)
    fields = {"apiVersion": {"const": api}, "kind": {"const": name}, "metadata": meta}
    if spec is None:
        return record(fields, **fields, spec=record(nodeLabels=TEXTS))
    return record([*fields, "spec"], **fields, spec=spec)


JOB_REASONS = (
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
)
RULE = record(
    ["name", "action"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
    onJobFailureReasons=several({"enum": list(JOB_REASONS)}),
    targetReplicatedJobs=several(NAME),
)
JOBSET = record(
    ["replicatedJobs"],
    network=record(
        enableDNSHostnames={"type": "boolean"},
        subdomain=NAME,
        publishNotReadyAddresses={"type": "boolean"},
    ),
    failurePolicy=record(
        maxRestarts={"type": "integer", "minimum": 0}, rules=several(RULE, maxItems=20)
    ),
    replicatedJobs=several(
        record(
            ["name", "template"],
            name=NAME,
            replicas={"type": "integer", "minimum": 1},
            template={"type": "object"},  # checked as a Job
        )
    ),
    suspend={"type": "boolean"},
    ttlSecondsAfterFinished={"type": "integer", "minimum": 0},
)
FLAVOR = record(
    ["name", "resources"],
    name=NAME,
    resources=several(
        record(
            ["name", "nominalQuota"], name=RESOURCE, nominalQuota=QUANTITY, borrowingLimit=QUANTITY
        )
    ),
)
CLUSTER_QUEUE = record(
    namespaceSelector=record(matchLabels=TEXTS),
    resourceGroups=several(
        record(
            ["coveredResources", "flavors"],
            coveredResources=several(RESOURCE, maxItems=16),
            flavors=several(FLAVOR, maxItems=16),
        ),
        maxItems=16,
    ),
    queueingStrategy={"enum": ["StrictFIFO", "BestEffortFIFO"]},
)
KUEUE = "kueue.x-k8s.io/v1beta1"
CUSTOM = {
    "JobSet": kind("jobset.x-k8s.io/v1alpha2", "JobSet", JOBSET, namespace=NAME),
    "ClusterQueue": kind(KUEUE, "ClusterQueue", CLUSTER_QUEUE),
    "LocalQueue": kind(
        KUEUE, "LocalQueue", record(["clusterQueue"], clusterQueue=NAME), namespace=NAME
    ),
    "ResourceFlavor": kind(KUEUE, "ResourceFlavor"),
}


def jobs_of(jobset):
    """The jobs that a JobSet makes, as documents of Kubernetes."""
    for one in jobset["spec"]["replicatedJobs"]:
        template = one["template"]
        metadata = {"name": one["name"], **template.get("metadata", {})}
        yield {**template, "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}


def check_quantities(value):
    """The published schemas take any text for an amount."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key in ("requests", "limits"):
            jsonschema.validate(inner, {"type": "object", "additionalProperties": QUANTITY})
        elif isinstance(inner, dict | list):
            check_quantities(inner)


def check(document):
    """Raises where a document has a field that there is not, or a value that it may not have."""
    check_quantities(document)
    schema = CUSTOM.get(document["kind"])
    if schema is None:
        kubernetes_validate.validate(document, VERSION, strict=True)
        return
    jsonschema.validate(document, schema)
    if document["kind"] == "JobSet":
        for job in jobs_of(document):
            kubernetes_validate.validate(job, VERSION, strict=True)


def check_folder(folder, kustomize):
    documents = kustomize.build(folder)
    assert documents
    for document in documents:
        check(document)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_manifest_is_valid(folder, kustomize):
    check_folder(folder, kustomize)


def test_no_file_is_left_out(kustomize):
    read = set()
    for folder in FOLDERS:
        kustomize.build(folder, read=read)
    assert read == {path.resolve() for path in K8S.rglob("*") if path.is_file()}


def by_id(documents):
    return {(one["apiVersion"], one["kind"], one["metadata"]["name"]): one for one in documents}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_kubectl_builds_the_same(folder, kustomize):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, with which the build of the tests is compared")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = by_id(one for one in yaml.safe_load_all(done.stdout) if one)
    assert by_id(kustomize.build(folder)) == theirs


TPU, GPU, JOBSET_FILE = "overlays/tpu/workers.yaml", "overlays/gpu/workers.yaml", "base/jobset.yaml"
MISTAKES = [
    (JOBSET_FILE, "name: not_to_be_repeated", "name: not-to-be-repeated", "not-to-be-repeated"),
    (JOBSET_FILE, "action: FailJobSet", "action: FailPod", "FailPod"),
    (JOBSET_FILE, "    maxRestarts: 100", "    maxRestart: 100", "maxRestart"),
    (JOBSET_FILE, "  network:", "  maxRestarts: 3\n  network:", "maxRestarts"),
    (JOBSET_FILE, "completionMode:", "completionmode:", "completionmode"),
    (JOBSET_FILE, "restartPolicy:", "restartpolicy:", "restartpolicy"),
    (JOBSET_FILE, "args:", "arg:", "arg"),
    (JOBSET_FILE, 'value: "2"', "value: 2", "2 is not of type"),
    (
        JOBSET_FILE,
        "                  image:",
        "                  args: []\n                  image:",
        "twice",
    ),
    ("volume/volume.yaml", "accessModes:", "accessMode:", "accessMode"),
    ("volume/volume.yaml", "1Ti\n", "1TiB\n", "1TiB"),
    ("base/kustomization.yaml", "resources:", "resource:", "resource"),
    ("volume/kustomization.yaml", "- volume.yaml", "- volumes.yaml", "there is no file"),
    ("queue/queue.yaml", 'nominalQuota: "512"', "nominalQuota: many", "many"),
    ("queue/queue.yaml", "clusterQueue:", "clusterQueues:", "clusterQueues"),
    (TPU, "/spec/template/spec/nodeSelector", "/spec/template/spec/nodeselector", "nodeselector"),
    (TPU, "/spec/parallelism", "/spec/paralelism", "paralelism"),
    (TPU, "env/1/value", "env/3/value", "no place '3'"),
    (TPU, 'value: "4"', "value: 4", "4 is not of type"),
    (TPU, "op: replace", "op: exchange", "exchange"),
    (GPU, "configMapRef:", "configmapRef:", "configmapRef"),
    (GPU, "/resources/limits", "/resource/limits", "there is no 'resource'"),
    (GPU, "/volumeMounts/-", "/volumeMount/-", "there is no 'volumeMount'"),
    (GPU, "mountPath:", "mountpath:", "mountpath"),
    (GPU, '"8"', "eight", "eight"),
    (GPU, "medium: Memory", "media: Memory", "media"),
    ("overlays/gpu/kustomization.yaml", "newTag:", "newtag:", "newtag"),
    ("overlays/gpu/kustomization.yaml", "newName:", "newname:", "newname"),
    ("overlays/gpu/kustomization.yaml", "namespace: default", "namespace: Default", "Default"),
    ("overlays/gpu/kustomization.yaml", "name: fgkd\n", "name: fgdk\n", "no container"),
    ("overlays/gpu/kustomization.yaml", "name: fgkd-train", "name: fgkd-trian", "fgkd-trian"),
    ("overlays/tpu/kustomization.yaml", "kind: JobSet", "kind: Jobset", "Jobset"),
    ("overlays/tpu/kustomization.yaml", "target:", "targets:", "targets"),
    ("overlays/tpu/kustomization.yaml", "patches:", "patch:", "patch"),
    ("overlays/tpu/kustomization.yaml", "patches:", "namePrefix: a-\npatches:", "namePrefix"),
    ("overlays/tpu/kustomization.yaml", "  disableNameSuffixHash: true", "  labels: {}", "hash"),
    ("overlays/tpu/flags.env", "LIBTPU_INIT_ARGS=", "LIBTPU-INIT-ARGS=", "NAME=VALUE"),
]
"""In a file: what is written otherwise, how, and what is then said."""


@pytest.mark.parametrize(
    ("file", "right", "wrong", "said"), MISTAKES, ids=[f"{one[0]}-{one[3]}" for one in MISTAKES]
)
def test_a_mistake_in_any_file_is_found(file, right, wrong, said, tmp_path, kustomize):
    copied = tmp_path / "k8s"
    shutil.copytree(K8S, copied)
    text = (copied / file).read_text()
    assert right in text
    (copied / file).write_text(text.replace(right, wrong, 1))
    folder = copied / Path(file).parent
    errors = (kustomize.Refused, jsonschema.ValidationError, kubernetes_validate.ValidationError)
    with pytest.raises(errors, match=said):
        check_folder(folder, kustomize)
