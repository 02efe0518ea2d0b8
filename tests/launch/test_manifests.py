"""Every manifest holds only fields that there are, with values they may have.

Objects of Kubernetes itself are checked against its published schemas, those of JobSet and Kueue
against the fields of their documented types that a run like ours can have use for. A job inside a
JobSet is a job of Kubernetes.
"""

import copy
import shutil
import subprocess
from pathlib import Path

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
    "JobSet": kind("jobset.x-k8s.io/v1alpha2", "JobSet", JOBSET),
    "ClusterQueue": kind(KUEUE, "ClusterQueue", CLUSTER_QUEUE),
    "LocalQueue": kind(
        KUEUE, "LocalQueue", record(["clusterQueue"], clusterQueue=NAME), namespace=NAME
    ),
    "ResourceFlavor": kind(KUEUE, "ResourceFlavor"),
}


def built(folder):
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, which builds without a cluster")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def jobs_of(jobset):
    """The jobs that a JobSet makes, as documents of Kubernetes."""
    for one in jobset["spec"]["replicatedJobs"]:
        template = one["template"]
        metadata = {"name": one["name"], **template.get("metadata", {})}
        yield {**template, "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}


def check(document):
    """Raises where a document has a field that there is not, or a value that it may not have."""
    validator = pytest.importorskip(
        "kubernetes_validate", reason="needs kubernetes-validate, of the extra 'dev'"
    )
    import jsonschema

    schema = CUSTOM.get(document["kind"])
    if schema is None:
        validator.validate(document, VERSION, strict=True)
        return
    jsonschema.validate(document, schema)
    if document["kind"] == "JobSet":
        for job in jobs_of(document):
            validator.validate(job, VERSION, strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_manifest_is_valid(folder):
    documents = built(folder)
    assert documents
    for document in documents:
        check(document)


MISTAKES = {
    "a-rule": lambda spec, pod: spec["failurePolicy"]["rules"][0].update(name="a-rule"),
    "FailPod": lambda spec, pod: spec["failurePolicy"]["rules"][0].update(action="FailPod"),
    "maxRestarts": lambda spec, pod: spec.update(maxRestarts=3),
    "paralelism": lambda spec, pod: spec["replicatedJobs"][0]["template"]["spec"].update(
        paralelism=2
    ),
    "restartpolicy": lambda spec, pod: pod.update(restartpolicy="Never"),
    "arg": lambda spec, pod: pod["containers"][0].update(arg=["train"]),
    "2 is not of type": lambda spec, pod: pod["containers"][0]["env"][1].update(value=2),
}
"""What is wrong, by what is said of it."""


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_found(said):
    (jobset,) = (one for one in built(K8S / "base") if one["kind"] == "JobSet")
    check(jobset)
    wrong = copy.deepcopy(jobset)
    pod = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    MISTAKES[said](wrong["spec"], pod)
    with pytest.raises(Exception, match=said):
        check(wrong)


def test_a_mistake_in_the_queue_is_found():
    (queue,) = (one for one in built(K8S / "queue") if one["kind"] == "ClusterQueue")
    check(queue)
    wrong = copy.deepcopy(queue)
    wrong["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]["nominalQuota"] = "many"
    with pytest.raises(Exception, match="many"):
        check(wrong)
