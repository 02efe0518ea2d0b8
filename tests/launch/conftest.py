"""Builds the manifests of `launch/k8s` without `kubectl`."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kustomize():
    """The module beside this file."""
    path = Path(__file__).with_name("kustomize.py")
    spec = importlib.util.spec_from_file_location("kustomize_subset", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
