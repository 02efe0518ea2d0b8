"""What `kubectl kustomize` makes of a folder, for the few features that `launch/k8s` uses.

Anything else is refused, so that what is validated is never another thing than what is applied;
so is what kustomize passes over in silence, such as a patch whose target is not there.
"""

import copy
import re

import yaml

KUSTOMIZATION = {
    "apiVersion": "kustomize.config.k8s.io/v1beta1",
    "kind": "Kustomization",
}
STEPS = ("namespace", "resources", "images", "generatorOptions", "configMapGenerator", "patches")
NAMESPACED = ("ConfigMap", "JobSet", "PersistentVolumeClaim", "Pod")
"""Kinds that get the namespace; kustomize gives it to any that it does not know."""


class Refused(Exception):
    """A folder that cannot be built, or that only the real kustomize can build."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which PyYAML would take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise Refused(f"{node.start_mark.name} line {node.start_mark.line + 1}: twice {twice}")
        return super().construct_mapping(node, deep=deep)


def load(path):
    """The documents of a YAML file."""
    if not path.is_file():
        raise Refused(f"there is no file {path}")
    with path.open() as file:
        return [one for one in yaml.load_all(file, _Loader) if one is not None]


def build(folder, *, read=None):
    """The documents that a folder comes to.

    Args:
      folder: with a `kustomization.yaml`.
      read: a set, to which the files that were read are added.
    """
    read = set() if read is None else read
    path = folder / "kustomization.yaml"
    (said,) = _load(path, read)
    only(said, *KUSTOMIZATION, *STEPS, where=path)
    if {name: said.get(name) for name in KUSTOMIZATION} != KUSTOMIZATION:
        raise Refused(f"{path} is not a kustomization of the known version")
    documents = []
    for name in said.get("resources", ()):
        resource = (folder / name).resolve()
        documents += build(resource, read=read) if resource.is_dir() else _load(resource, read)
    documents = copy.deepcopy(documents)
    for one in said.get("configMapGenerator", ()):
        # With a hash in its name, kustomize would have to find every mention of it.
        if said.get("generatorOptions") != {"disableNameSuffixHash": True}:
            raise Refused(f"{path}: a config map is generated under a name with a hash")
        documents.append(config_map(one, folder, read))
    for patch in said.get("patches", ()):
        only(patch, "path", "target", where=path, all_of=True)
        only(patch["target"], "kind", "name", where=path, all_of=True)
        for operation in _load(folder / patch["path"], read, one=True):
            apply(operation, chosen(documents, patch["target"]))
    for image in said.get("images", ()):
        only(image, "name", "newName", "newTag", where=path, all_of=True)
        if not set_image(documents, image["name"], f"{image['newName']}:{image['newTag']}"):
            raise Refused(f"{path}: no container has the image '{image['name']}'")
    for one in documents if "namespace" in said else ():
        if one["kind"] not in NAMESPACED:
            raise Refused(f"{path}: whether a {one['kind']} has a namespace is not known here")
        one["metadata"]["namespace"] = said["namespace"]
    ids = [(one["apiVersion"], one["kind"], one["metadata"]["name"]) for one in documents]
    if len(set(ids)) < len(ids):
        raise Refused(f"{path}: something is there twice among {ids}")
    return documents


def only(mapping, *names, where, all_of=False):
    """Raises where a mapping has another field, or, with `all_of`, lacks one."""
    if unknown := mapping.keys() - set(names):
        raise Refused(f"{where}: what {sorted(unknown)} does is not known here")
    if all_of and (missing := set(names) - mapping.keys()):
        raise Refused(f"{where}: {sorted(missing)} is missing")


def _load(path, read, *, one=False):
    read.add(path.resolve())
    documents = load(path)
    return documents[0] if one else documents


def config_map(said, folder, read):
    only(said, "name", "envs", where=folder, all_of=True)
    data = {}
    for name in said["envs"]:
        path = folder / name
        read.add(path.resolve())
        for line in path.read_text().splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            key, equals, value = line.partition("=")
            if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key) or key in data:
                raise Refused(f"{path}: '{line}' is not NAME=VALUE with a new name")
            data[key] = value
    metadata = {"name": said["name"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def chosen(documents, target):
    if re.fullmatch(r"[\w-]+", target["name"]) is None:
        raise Refused(f"the target {target} is a pattern, not a name")
    found = [
        one
        for one in documents
        if (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])
    ]
    if len(found) != 1:
        raise Refused(f"{len(found)} documents are {target}; expected one")
    return found[0]


def apply(operation, document):
    """One operation of a JSON patch (RFC 6902): `add` or `replace`."""
    only(operation, "op", "path", "value", where="a patch", all_of=True)
    op, path, value = operation["op"], operation["path"], copy.deepcopy(operation["value"])
    if op not in ("add", "replace"):
        raise Refused(f"what the operation {op} does is not known here")
    root, *words = (word.replace("~1", "/").replace("~0", "~") for word in path.split("/"))
    if root or not words:
        raise Refused(f"the path '{path}' does not begin with /")
    parent = document
    for word in words[:-1]:
        parent = parent[_place(parent, word, path)]
    word = words[-1]
    if isinstance(parent, list) and op == "add":
        size = len(parent)
        parent.insert(size if word == "-" else _index(word, size, path), value)
    elif op == "add" and isinstance(parent, dict):
        parent[word] = value
    else:
        parent[_place(parent, word, path)] = value


def _place(parent, word, path):
    """The key or the index of something that is there."""
    if isinstance(parent, list):
        return _index(word, len(parent) - 1, path)
    if not isinstance(parent, dict) or word not in parent:
        raise Refused(f"there is no '{word}' for the path {path}")
    return word


def _index(word, last, path):
    if re.fullmatch(r"0|[1-9]\d*", word) is None or int(word) > last:
        raise Refused(f"there is no place '{word}' for the path {path}")
    return int(word)


def set_image(value, name, image):
    """Replaces an image, with any tag, in all lists of containers; returns how often."""
    if isinstance(value, list):
        return sum(set_image(one, name, image) for one in value)
    if not isinstance(value, dict):
        return 0
    count = 0
    for key, inner in value.items():
        count += set_image(inner, name, image)
        for one in inner if key in ("containers", "initContainers") else ():
            if re.fullmatch(rf"{re.escape(name)}(:[\w.-]+)?", one.get("image", "")):
                one["image"] = image
                count += 1
    return count
