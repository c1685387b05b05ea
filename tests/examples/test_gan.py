"""examples/gan.py: two networks in one step equal two loops of plain JAX, and learn."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import graphlr as glr
from tests.examples.test_examples import load
from tests.models import assert_close, quick, values

gan = load("gan")
RNG = np.random.default_rng(0)
PLAYERS = ("generator", "discriminator")
STATISTICS = ("norm.mean", "norm.var")


def drawn(key, shape, dtype):
    """An initialiser that compiles nothing."""
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape) / 2, dtype)


class Tiny(nnx.Module):
    """Two layers and a norm between them, in float64."""

    def __init__(self, inputs, outputs):
        keys = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.first = nnx.Linear(inputs, 5, kernel_init=drawn, **keys)
        self.norm = nnx.BatchNorm(5, **keys)
        self.last = nnx.Linear(5, outputs, kernel_init=drawn, **keys)
        for statistic in (self.norm.mean, self.norm.var):
            statistic.set_value(statistic.get_value().astype(float))

    def __call__(self, x):
        return self.last(nnx.tanh(self.norm(self.first(x))))


# --- the step -------------------------------------------------------------------------


def plain(params, x):
    """A `Tiny` in plain JAX: outputs, and mean and variance inside."""
    x = x @ params["first.kernel"] + params["first.bias"]
    mean, var = x.mean(0), x.var(0)
    x = (x - mean) / jnp.sqrt(var + 1e-5)
    x = jnp.tanh(x * params["norm.scale"] + params["norm.bias"])
    return x @ params["last.kernel"] + params["last.bias"], (mean, var)


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


LOSSES = dict(zip(PLAYERS, (generator_loss, discriminator_loss), strict=True))
OPTIMIZERS = {
    "generator": optax.adam(optax.cosine_decay_schedule(0.01, 40), b1=0.5),
    "discriminator": optax.rmsprop(
        optax.warmup_cosine_decay_schedule(0.0, 5e-4, 2, 40),
        decay=0.99,
        eps_in_sqrt=False,
    ),
}


@quick
def two_loops(params, batches):
    """Each player's gradient and update by itself; what is left, and the losses."""
    rngs = nnx.Rngs(noise=3)
    draws = jnp.stack([rngs.noise() for _ in batches])
    running = {name: (jnp.zeros(5), jnp.ones(5)) for name in PLAYERS}
    slots = {name: OPTIMIZERS[name].init(params[name]) for name in PLAYERS}

    def turn(state, inputs):
        (params, running, slots), (real, draw) = state, inputs
        noise = jax.random.normal(draw, (len(real), gan.NOISE))
        new, after, kept, losses = {}, dict(running), {}, {}
        for me, other in (PLAYERS, PLAYERS[::-1]):
            slope = jax.value_and_grad(LOSSES[me], has_aux=True)
            (losses[me], stats), grads = slope(params[me], params[other], real, noise)
            updates, kept[me] = OPTIMIZERS[me].update(grads, slots[me])
            new[me] = optax.apply_updates(params[me], updates)
            for now in stats:
                pairs = zip(after[me], now, strict=True)
                after[me] = tuple(0.99 * old + 0.01 * new for old, new in pairs)
        return (new, after, kept), losses

    (params, running, _), losses = jax.lax.scan(
        turn, (params, running, slots), (batches, draws)
    )
    return params, running, losses


class Played(NamedTuple):
    """A graph in float64 after some steps, and what happened."""

    graph: gan.TrainGraph
    before: dict
    batches: np.ndarray
    losses: list
    rates: list


@pytest.fixture(scope="module")
def played():
    """Adam against RMSprop, two schedules, a BatchNorm in each."""
    args = gan.parse_args(["--steps", "40", "--generator-lr", "0.01"])
    batches, losses, rates = RNG.normal(size=(6, 8, 2)), [], []
    with jax.enable_x64(True):
        graph = gan.TrainGraph(Tiny(gan.NOISE, 2), Tiny(2, 1), seed=3)
        gan.add_optimizers(graph, args)
        before = {name: values(getattr(graph, name)) for name in PLAYERS}
        for real in batches:
            rates.append(graph.lr)
            losses.append(graph(real))
    return Played(graph, before, batches, losses, rates)


def test_both_players_are_two_loops_of_plain_jax(played):
    params = {
        name: {path: x for path, x in of_one.items() if path not in STATISTICS}
        for name, of_one in played.before.items()
    }
    with jax.enable_x64(True):
        params, running, losses = two_loops(params, played.batches)
    for name in PLAYERS:
        found = [float(loss[name]) for loss in played.losses]
        np.testing.assert_allclose(found, losses[name], rtol=1e-9)
        want = params[name] | dict(zip(STATISTICS, running[name], strict=True))
        # A bias before a norm has a gradient of rounding errors; Adam enlarges it.
        got = values(getattr(played.graph, name))
        assert_close(got, want, rtol=1e-7, atol=1e-8)
    assert played.graph.compiles.count == 1


def test_rates_and_slots_are_named_by_optimizer(played):
    first, second, third, *_ = played.rates
    assert list(first) == [*PLAYERS]
    assert first == pytest.approx({"generator": 0.01, "discriminator": 0})
    half = 5e-4 / 2  # half warmed up
    rate = 0.005 * (1 + np.cos(np.pi / 40))
    assert second == pytest.approx({"generator": rate, "discriminator": half}, rel=1e-6)
    assert third["discriminator"] == pytest.approx(5e-4)
    state = played.graph.state_dict()
    assert "slots.generator.last.kernel.exp_avg" in state
    assert not [k for k in state if k.startswith("slots.disc") and "exp_avg" in k]
    assert {"groups.generator.lr", "groups.discriminator.lr"} <= state.keys()


class Louder(gan.TrainGraph):
    """Each loss is multiplied by a number that can be set between two steps."""

    def __init__(self, *modules):
        super().__init__(*modules)
        self.factors = {name: nnx.Variable(jnp.ones(())) for name in PLAYERS}

    def generator_loss(self, *images):
        factor = self.factors["generator"].get_value()
        return factor * super().generator_loss(*images)

    def discriminator_loss(self, *images):
        factor = self.factors["discriminator"].get_value()
        return factor * super().discriminator_loss(*images)


IMAGES = RNG.normal(size=(8, gan.SIZE, gan.SIZE, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled():
    """Both at 0.1 in the first step; after that turn by turn."""

    @quick
    def players():
        kinds = (gan.Generator, gan.Discriminator)
        return [kind(8, rngs=nnx.Rngs(seed)) for seed, kind in enumerate(kinds)]

    graph = Louder(*players())
    schedules = [0.1, 0.1, 0.0, 0.2, 0.0], [0.1, 0.0, 0.3, 0.0, 0.4]
    for name, schedule in zip(PLAYERS, schedules, strict=True):
        groups = [{"params": getattr(graph, name), "name": name}]
        graph.add_optimizer(glr.optim.SGD(groups), lr_sch=schedule)
    return graph, graph.state_dict()


@pytest.fixture
def graph(compiled):
    """As it was before the first step."""
    graph, state = compiled
    graph.load_state_dict(state)
    return graph


def moved(graph):
    """What one step adds to every parameter and statistic, by player and path."""
    before = {name: values(getattr(graph, name)) for name in PLAYERS}
    graph(IMAGES)
    after = {name: values(getattr(graph, name)) for name in PLAYERS}
    return {
        name: {path: after[name][path] - old for path, old in before[name].items()}
        for name in PLAYERS
    }


@pytest.mark.parametrize("factor", [0.0, 3.0])
@pytest.mark.parametrize(("me", "other"), [PLAYERS, PLAYERS[::-1]])
def test_a_player_moves_by_its_own_loss_alone(me, other, factor, graph, compiled):
    usual = moved(graph)
    graph.load_state_dict(compiled[1])
    graph.factors[me].set_value(jnp.float32(factor))
    louder = moved(graph)
    assert np.abs(usual[me]["first.kernel"]).max() > 1e-3
    assert_close(louder[other], usual[other], atol=1e-7)
    for path, change in usual[me].items():
        expected = change if path.endswith(("mean", "var")) else factor * change
        limits = {"rtol": 1e-3, "atol": 1e-6, "err_msg": path}
        np.testing.assert_allclose(louder[me][path], expected, **limits)


def test_a_player_moves_by_its_own_schedule_alone(graph):
    """Turn by turn: where a rate is zero its player stands still."""
    graph(IMAGES)
    for mine, theirs in [(0.1, 0.0), (0.0, 0.3), (0.2, 0.0)]:
        rates = {"generator": mine, "discriminator": theirs}
        assert graph.lr == pytest.approx(rates)
        moves = moved(graph)
        for name, rate in rates.items():
            assert moves[name]["last.kernel"].any() == bool(rate), (graph.step, name)
    assert graph.compiles.count == 1


def test_what_the_judge_changes_is_gone_with_it(graph):
    """The discriminator is called three times and draws twice a call: four count."""
    count = graph.discriminator.dropout.rngs.count
    before = int(count.get_value())
    graph(IMAGES)
    assert int(count.get_value()) == before + 4


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


def test_a_seed_says_everything(tmp_path, capsys, folder):
    small = "--steps", "2", "--batch-size", "8", "--compile-cache", str(folder)
    lines = []
    for seed in "001":
        _, printed = run(tmp_path, capsys, *small, "--seed", seed)
        lines.append([line for line in printed if line.startswith("step ")])
    assert lines[0] == lines[1] != lines[2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_default_run_covers_85_percent(tmp_path, capsys, seed):
    covered, _ = run(tmp_path, capsys, "--seed", str(seed))
    assert covered >= 0.85
