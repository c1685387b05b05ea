"""Words that messages share: lists that stay short, and what was meant."""

from graphlr.messages import listing, unknown_key


def test_messages_are_short():
    assert listing(map(str, range(9))) == "0, 1, 2, 3, 4 and 4 more"
    assert unknown_key("lrs", ["lr", "eps"], "it") == (
        "it has no 'lrs': did you mean 'lr'? It takes eps, lr."
    )
