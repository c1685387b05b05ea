"""The books of compilations."""

from graphlr.engine.compiles import Compile, Compiles


def test_books_of_compilations():
    compiles = Compiles()
    assert repr(compiles) == "0 compiled in 0.0 s: nothing yet"
    compiles.records += [Compile("first call", 0.5, 1.0), Compile("x", 0.25, 0.25)]
    assert repr(compiles) == "2 compiled in 2.0 s: first call; x"
    assert (compiles.count, len(compiles), int(compiles)) == (2, 2, 2)
    assert (compiles.seconds, compiles.why) == (2.0, ["first call", "x"])
