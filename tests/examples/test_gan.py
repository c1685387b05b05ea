"""examples/gan.py: two networks in one step equal two loops of plain JAX, and learn."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from tests.examples.test_examples import load

gan = load("gan")
RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(8, 2))
PLAYERS = ("generator", "discriminator")


class Tiny(nnx.Module):
    """Two layers and a norm between them."""

    def __init__(self, seed, inputs, outputs, dtype):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(inputs, 5, param_dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(5, param_dtype=dtype, rngs=rngs)
        self.last = nnx.Linear(5, outputs, param_dtype=dtype, rngs=rngs)
        for statistic in (self.norm.mean, self.norm.var):
            statistic.set_value(statistic.get_value().astype(dtype))

    def __call__(self, x):
        return self.last(nnx.tanh(self.norm(self.first(x))))


def tiny(kind=gan.TrainGraph, dtype=jnp.float32, **keys):
    return kind(Tiny(0, gan.NOISE, 2, dtype), Tiny(1, 2, 1, dtype), seed=3, **keys)


def with_sgd(graph, schedules=(None, None)):
    for name, schedule in zip(PLAYERS, schedules, strict=True):
        groups = [{"params": getattr(graph, name), "name": name}]
        graph.add_optimizer(glr.optim.SGD(groups, lr=0.1), lr_sch=schedule)
    return graph


def values(graph, player):
    """Copies of every parameter and statistic of a player, by path."""
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    state = nnx.to_flat_state(nnx.state(getattr(graph, player), kinds))
    return {".".join(path): np.array(value.get_value()) for path, value in state}


def moved(graph):
    """What one step adds to every parameter, by player and path."""
    before = {name: values(graph, name) for name in PLAYERS}
    graph(REAL)
    after = {name: values(graph, name) for name in PLAYERS}
    return {
        name: {
            path: after[name][path] - before[name][path]
            for path in before[name]
            if path not in ("norm.mean", "norm.var")
        }
        for name in PLAYERS
    }


# --- the step -------------------------------------------------------------------------


def plain(params, x):
    """A `Tiny` in plain JAX: outputs, and mean and variance inside."""
    x = x @ params["first"]["kernel"] + params["first"]["bias"]
    mean, var = x.mean(0), x.var(0)
    x = (x - mean) / jnp.sqrt(var + 1e-5)
    x = jnp.tanh(x * params["norm"]["scale"] + params["norm"]["bias"])
    return x @ params["last"]["kernel"] + params["last"]["bias"], (mean, var)


def two_loops(params, batches, noises, optimizers):
    """Each player's gradient and update by itself; parameters and statistics."""

    def generator_loss(mine, theirs, real, noise):
        fake, stats = plain(mine, noise)
        judged, _ = plain(theirs, fake)
        return optax.sigmoid_binary_cross_entropy(judged, 1.0).mean(), [stats]

    def discriminator_loss(mine, theirs, real, noise):
        fake, _ = plain(theirs, noise)
        on_real, first = plain(mine, real)
        on_fake, second = plain(mine, fake)
        loss = (
            optax.sigmoid_binary_cross_entropy(on_real, 0.9).mean()
            + optax.sigmoid_binary_cross_entropy(on_fake, 0.0).mean()
        )
        return loss, [first, second]

    losses = dict(zip(PLAYERS, (generator_loss, discriminator_loss), strict=True))
    gradient = {
        name: jax.jit(jax.value_and_grad(loss, has_aux=True))
        for name, loss in losses.items()
    }
    slots = {name: optimizers[name].init(params[name]) for name in PLAYERS}
    running = {name: (jnp.zeros(5), jnp.ones(5)) for name in PLAYERS}
    history = []
    for real, noise in zip(batches, noises, strict=True):
        new = {}
        history.append({})
        for me, other in (PLAYERS, PLAYERS[::-1]):
            (loss, stats), grads = gradient[me](params[me], params[other], real, noise)
            updates, slots[me] = optimizers[me].update(grads, slots[me])
            new[me] = optax.apply_updates(params[me], updates)
            for now in stats:
                running[me] = jax.tree.map(
                    lambda old, now: 0.99 * old + 0.01 * now, running[me], now
                )
            history[-1][me] = float(loss)
        params = new
    return params, running, history


def test_both_players_are_two_loops_of_plain_jax():
    """Adam against RMSprop, two schedules, a BatchNorm in each: in float64."""
    args = gan.parse_args(["--steps", "40", "--generator-lr", "0.01"])
    with jax.enable_x64(True):
        graph = tiny(dtype=jnp.float64)
        gan.add_optimizers(graph, args)
        states = (nnx.state(getattr(graph, name), nnx.Param) for name in PLAYERS)
        pure = (nnx.to_pure_dict(nnx.clone(state)) for state in states)
        params = dict(zip(PLAYERS, pure, strict=True))
        batches = RNG.normal(size=(6, 8, 2))
        losses = [graph(real) for real in batches]

        rngs = nnx.Rngs(noise=3)
        noises = [jax.random.normal(rngs.noise(), (8, gan.NOISE)) for _ in batches]
        optimizers = {
            "generator": optax.adam(optax.cosine_decay_schedule(0.01, 40), b1=0.5),
            "discriminator": optax.rmsprop(
                optax.warmup_cosine_decay_schedule(0.0, 5e-4, 2, 40),
                decay=0.99,
                eps_in_sqrt=False,
            ),
        }
        params, running, history = two_loops(params, batches, noises, optimizers)
    for loss, want in zip(losses, history, strict=True):
        assert loss == pytest.approx(want, rel=1e-9)
    for name in PLAYERS:
        want = {f"{a}.{b}": x for a in params[name] for b, x in params[name][a].items()}
        want |= zip(("norm.mean", "norm.var"), running[name], strict=True)
        got = values(graph, name)
        assert got.keys() == want.keys()
        for key in want:
            # A bias before a norm has a gradient of rounding errors; Adam enlarges it.
            np.testing.assert_allclose(got[key], want[key], rtol=1e-7, atol=1e-8)
    assert graph.compiles.count == 1


class Louder(gan.TrainGraph):
    """One of the losses is multiplied."""

    def __init__(self, *modules, seed, player, factor):
        super().__init__(*modules, seed=seed)
        self.player, self.factor = player, factor

    def generator_loss(self, *images):
        factor = self.factor if self.player == "generator" else 1
        return factor * super().generator_loss(*images)

    def discriminator_loss(self, *images):
        factor = self.factor if self.player == "discriminator" else 1
        return factor * super().discriminator_loss(*images)


@pytest.fixture(scope="module")
def usual():
    return moved(with_sgd(tiny()))


@pytest.mark.parametrize("factor", [0.0, 3.0])
@pytest.mark.parametrize(("me", "other"), [PLAYERS, PLAYERS[::-1]])
def test_a_player_moves_by_its_own_loss_alone(me, other, factor, usual):
    louder = moved(with_sgd(tiny(Louder, player=me, factor=factor)))
    assert np.abs(usual[me]["first.kernel"]).max() > 1e-3
    for path, change in usual[me].items():
        limits = {"rtol": 1e-3, "atol": 1e-6, "err_msg": path}
        np.testing.assert_allclose(louder[me][path], factor * change, **limits)
    for path, change in usual[other].items():
        np.testing.assert_allclose(louder[other][path], change, atol=1e-7, err_msg=path)


def test_a_player_moves_by_its_own_schedule_alone():
    """Turn by turn: where a rate is zero its player stands still."""
    graph = with_sgd(tiny(), schedules=([0.1, 0.0, 0.2, 0.0], [0.0, 0.3, 0.0, 0.4]))
    for step, (mine, theirs) in enumerate([(0.1, 0.0), (0.0, 0.3), (0.2, 0.0)]):
        assert graph.lr == pytest.approx({"generator": mine, "discriminator": theirs})
        before = {name: values(graph, name) for name in PLAYERS}
        graph(REAL)
        for name, moves in zip(PLAYERS, (mine, theirs), strict=True):
            after = values(graph, name)["last.kernel"]
            same = np.array_equal(before[name]["last.kernel"], after)
            assert same == (not moves), (step, name)
    assert graph.compiles.count == 1


def test_rates_and_slots_are_named_by_optimizer():
    graph = tiny()
    gan.add_optimizers(graph, gan.parse_args(["--steps", "40"]))
    graph(REAL)
    args = {"rel": 1e-6}
    assert list(graph.lr) == [*PLAYERS]
    assert graph.lr["discriminator"] == pytest.approx(2.5e-4, **args)  # half warmed up
    assert graph.lr["generator"] == pytest.approx(
        5e-4 * (1 + np.cos(np.pi / 40)), **args
    )
    state = graph.state_dict()
    assert "slots.generator.last.kernel.exp_avg" in state
    assert not [k for k in state if k.startswith("slots.disc") and "exp_avg" in k]
    assert {"groups.generator.lr", "groups.discriminator.lr"} <= state.keys()


def test_what_the_judge_changes_is_gone_with_it():
    """The discriminator is called three times and draws twice a call: four count."""
    rngs = nnx.Rngs(0)
    discriminator = gan.Discriminator(8, rngs=rngs)
    graph = with_sgd(gan.TrainGraph(gan.Generator(8, rngs=nnx.Rngs(1)), discriminator))
    count = int(discriminator.dropout.rngs.count.get_value())
    graph(np.zeros((4, 8, 8, 1), np.float32))
    assert int(discriminator.dropout.rngs.count.get_value()) == count + 4


# --- the program ----------------------------------------------------------------------


def test_coverage():
    real = RNG.normal(size=(200, 2))
    assert gan.coverage(real, RNG.normal(size=(200, 2))) > 0.9
    assert gan.coverage(real, np.repeat(real[:1], 200, axis=0)) < 0.1  # all alike
    assert gan.coverage(real, real + 100) == 0


OFF = ("--compile-cache", "off")


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        gan.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--steps", "--batch-size", "--generator-lr", "--discriminator-lr", "--seed",
        "--out",
    ):  # fmt: skip
        assert option in text


@pytest.mark.parametrize(
    "argv", [["--steps", "0"], ["--generator-lr", "nan"], ["--seed", "-1"]]
)
def test_bad_arguments(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        gan.main(argv)
    assert stop.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_what_is_wrong_is_said_before_training(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match=r"--batch-size 5000: give 1438 at most"):
        gan.main(["--batch-size", "5000", "--out", str(tmp_path), *OFF])
    with pytest.raises(SystemExit, match=r"--out .*file: .*exists"):
        gan.main(["--out", str(file), *OFF])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match=r"pip install 'graphlr\[examples\]'"):
        gan.main(["--out", str(tmp_path), *OFF])


def test_a_run_that_diverges_is_stopped():
    gan.check({"generator": 1.0, "discriminator": jnp.float32(2)}, 7)
    with pytest.raises(SystemExit, match=r"discriminator's loss is nan after 7 steps"):
        gan.check({"generator": 1.0, "discriminator": jnp.float32(np.nan)}, 7)


def run(tmp_path, capsys, *argv):
    """Coverage, and what was printed, a line each."""
    covered = gan.main(["--out", str(tmp_path / "pictures"), *OFF, *argv])
    return covered, capsys.readouterr().out.splitlines()


def test_it_learns_prints_and_draws(tmp_path, capsys):
    covered, lines = run(tmp_path, capsys, "--steps", "1000")
    assert covered > 0.5  # Gaussian pixels of the same moments: 46 %
    assert lines[-1] == f"coverage {100 * covered:.1f} %"
    (before,) = [line for line in lines if line.startswith("coverage of 359 test")]
    assert before.endswith(" 0.0 % by the untrained generator")
    steps = [line for line in lines if line.startswith("step ")]
    assert [int(line[5:10]) for line in steps] == [*range(100, 1001, 100)]
    assert all(line.count("(lr ") == 2 for line in steps)
    (bar,) = [line for line in lines if "1000/1000" in line]
    assert "lr generator" in bar
    assert any(line.startswith("1 compiled in ") for line in lines)
    picture = tmp_path / "pictures" / "gan.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_seed_says_everything(tmp_path, capsys):
    lines = []
    for seed in "0", "0", "1":
        argv = "--steps", "2", "--batch-size", "8", "--seed", seed
        _, printed = run(tmp_path, capsys, *argv)
        lines.append([line for line in printed if line.startswith("step ")])
    assert lines[0] == lines[1] != lines[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_default_run_covers_85_percent(tmp_path, capsys, seed):
    covered, _ = run(tmp_path, capsys, "--seed", str(seed))
    assert covered >= 0.85
