"""Fixtures that tests of several rooms use."""

import jax
import pytest

import graphlr as glr


@pytest.fixture
def lowered(monkeypatch):
    """The names of everything that is lowered: what is compiled, counted."""
    names = []
    lower = jax.stages.Traced.lower

    def note(self, *args, **kwargs):
        names.append(self.fun_name)
        return lower(self, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Traced, "lower", note)
    return names


@pytest.fixture
def folder(tmp_path):
    """A folder for compiled programs, in use."""
    yield glr.runtime.compile_cache(tmp_path / "cache")
    glr.runtime.compile_cache(None)
