"""What the text of a compiled program tells: loops, how often they go round, what that costs."""

import importlib
import importlib.util
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fgkd_jax.cli.compilation import costs, report, study
from fgkd_jax.cli.compilation.chips import CHIPS
from fgkd_jax.cli.compilation.collectives import Collective, find_collectives
from fgkd_jax.cli.compilation.costs import cost_of, with_all_rounds
from fgkd_jax.cli.compilation.program import Loop, read_program
from fgkd_jax.cli.compilation.topology import Slice
from fgkd_jax.train.steps import Counted

LOOP = """\
%round (p: (s32[], f32[8], s32[], s32[])) -> (s32[], f32[8], s32[], s32[]) {
  %one = s32[]{:T(128)} constant(1)
  %p = (s32[]{:T(128)}, f32[8]{0:T(8,128)S(1)}, s32[], /*index=3*/s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %c = s32[]{:T(128)S(6)} copy(%i), backend_config={"flag_configs":[]}
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %s = s32[] get-tuple-element(%p), index=2
  %n = s32[] get-tuple-element(%p), index=3
  %next = s32[]{:T(128)} add(%c, %one), metadata={op_name="while/body/add"}
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}, s32[], s32[]) tuple(%next, %x, %s, /*index=3*/%n)
}

%goes_on (q: (s32[], f32[8], s32[], s32[])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[8]{0}, s32[], s32[]) parameter(0)
  %last = s32[]{:T(128)} constant(9)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %bound = s32[] get-tuple-element(%q), index=3
  ROOT %lt = pred[]{:T(512)} compare(%j, %last), direction=LT, metadata={op_name="lt"}
}

ENTRY %main (a: f32[8], b: s32[]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = s32[] parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %two = s32[]{:T(128)} constant(2)
  %seven = s32[]{:T(128)} constant(7)
  %from = s32[]{:T(128)} copy(%zero)
  %start = (s32[]{:T(128)}, f32[8]{0}, s32[], s32[]) tuple(%from, %a, %two, %seven)
  %w = (s32[], f32[8]{0}, s32[], s32[]) while(%start), condition=%goes_on, body=%round
  ROOT %y = f32[8]{0} get-tuple-element(%w), index=1
}
"""
"""As the compiler for TPU writes it, which does not state the number of rounds."""


@pytest.mark.parametrize(
    ("right", "wrong", "rounds"),
    [
        ("", "", 9),
        ("constant(9)", "constant(0)", 0),
        ("constant(0)", "constant(3)", 6),
        ("constant(0)", "constant(-3)", 12),
        ("constant(1)", "constant(2)", 5),
        ("add(%c, %one)", "add(%one, %c)", 9),
        ("add(%c, %one)", "add(s32[] %c, s32[]{:T(128)} %one)", 9),
        ("add(%c, %one)", "add(%c, %s)", 5),
        ("direction=LT", "direction=LE", 10),
        ("(%j, %last), direction=LT", "(%last, %j), direction=GT", 9),
        ("(%j, %last)", "(%j, %bound)", 7),
        ("%last = s32[]{:T(128)} constant(9)", "%last = s32[] constant(9)", 9),
        # What is not known:
        ("(%j, %last)", "(%last, %last)", None),
        ("direction=LT", "direction=GT", None),
        ("direction=LT", "direction=NE", None),
        ("constant(1)", "constant(-1)", None),
        ("constant(1)", "constant(0)", None),
        ("add(%c, %one)", "multiply(%c, %one)", None),
        ("add(%c, %one)", "add(%c, %c)", None),
        ("add(%c, %one)", "add(%s, %one)", None),
        ("%two, %seven)", "%two, %b)", 9),
        ("tuple(%from,", "tuple(%b,", None),
        ("pred[]{:T(512)} compare(", "pred[] fusion(", None),
        ("while(%start)", "while(%elsewhere)", None),
        ("/*index=3*/%n)", "/*index=3*/%next)", 9),
    ],
)
def test_rounds_are_counted_from_what_a_loop_does(right, wrong, rounds):
    assert right in LOOP
    program = read_program(LOOP.replace(right, wrong))
    assert program.loops == [Loop("round", "main", rounds)]
    assert program.times["round"] == (1 if rounds is None else rounds)
    assert (program.known_loops, program.unknown_loops) == (
        int(rounds is not None),
        int(rounds is None),
    )


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("%two, %seven)", "%two, %b)"), ("/*index=3*/%n)", "/*index=3*/%next)")],
    ids=["given", "changed"],
)
def test_a_bound_that_is_given_or_changed_is_not_known(right, wrong):
    text = LOOP.replace("(%j, %last)", "(%j, %bound)").replace(right, wrong)
    assert read_program(text).loops[0].rounds is None


@settings(deadline=None, max_examples=50)
@given(st.integers(-9, 9), st.integers(-9, 40), st.integers(1, 7), st.booleans(), st.booleans())
def test_rounds_are_those_of_the_loop_run(first, limit, step, also_equal, downwards):
    """Against the loop itself, upwards or downwards."""
    counter, rounds, sign = first, 0, -1 if downwards else 1
    while sign * counter < sign * limit or (also_equal and counter == limit):
        counter, rounds = counter + sign * step, rounds + 1
    word = ("G" if downwards else "L") + ("E" if also_equal else "T")
    text = LOOP.replace("%zero = s32[]{:T(128)} constant(0)", f"%zero = s32[] constant({first})")
    text = text.replace("%last = s32[]{:T(128)} constant(9)", f"%last = s32[] constant({limit})")
    text = text.replace("direction=LT", f"direction={word}")
    if downwards:
        text = text.replace("add(%c, %one)", "subtract(%c, %one)")
    text = text.replace("%one = s32[]{:T(128)} constant(1)", f"%one = s32[] constant({step})")
    assert read_program(text).loops[0].rounds == rounds


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def looping(length, *, inner=3):
    w = jnp.ones((32, 32))

    def body(x, _):
        x = jax.lax.fori_loop(0, inner, lambda i, x: jnp.tanh(x @ w), x)
        return jnp.cos(x @ w), None

    return lambda x: jax.lax.scan(body, x, None, length=length)[0]


def test_the_stated_number_of_rounds_is_taken_and_multiplied():
    program = read_program(compiled(looping(9, inner=4), jnp.ones((4, 32))).as_text())
    rounds = {loop.within: loop.rounds for loop in program.loops}
    assert sorted(rounds.values()) == [4, 9]
    assert sorted(program.times[loop.body] for loop in program.loops) == [9, 36]


def test_operations_of_all_rounds_are_those_of_the_same_steps_in_a_row():
    x, w = jnp.ones((4, 32)), jnp.ones((32, 32))
    loop = compiled(looping(5), x)

    def in_a_row(x):
        for _ in range(5):
            for _ in range(3):
                x = jnp.tanh(x @ w)
            x = jnp.cos(x @ w)
        return x

    once, row = cost_of(loop.cost_analysis()), cost_of(compiled(in_a_row, x).cost_analysis())
    whole = with_all_rounds(once, read_program(loop.as_text()))
    assert once.flops < row.flops / 5
    assert whole.flops == pytest.approx(row.flops, rel=0.01)
    assert whole.bytes_accessed > 4 * once.bytes_accessed


def test_a_loop_of_unknown_length_is_one_round():
    def function(x, n):
        return jax.lax.fori_loop(0, n, lambda i, x: jnp.tanh(x @ x), x)

    made = compiled(function, jnp.ones((8, 8)), jnp.int32(3))
    once = cost_of(made.cost_analysis())
    program = read_program(made.as_text())
    assert (program.known_loops, program.unknown_loops) == (0, 1)
    assert with_all_rounds(once, program) == once


def test_where_jaxlib_cannot_be_asked_one_round_is_counted_and_said(monkeypatch):
    def steps():
        step = Counted(looping(5))
        where = Slice("v5e:2x2", jax.devices()[:1], 1, CHIPS["v5e"])
        return study.study(step, (jnp.ones((4, 32)),), where)

    found = steps()
    assert found["loops"] == {"unknown": 0, "known": 2, "in_operations": True}
    assert not report._loops(found["loops"])
    monkeypatch.setattr(costs.importlib, "import_module", lambda name: object())
    less = steps()
    assert less["loops"] == {"unknown": 0, "known": 2, "in_operations": False}
    assert less["flops"] < found["flops"] / 5
    lines = "\n".join(report._render_step(less))
    assert "one round, in operations and bytes accessed, of each of 2" in lines
    lines = "\n".join(report._render_step({**found, "loops": {**found["loops"], "unknown": 3}}))
    assert "loops of unknown length  3, counted as one round each" in lines


def collectives(text, devices=8):
    return sorted(find_collectives(read_program(text), devices=devices), key=str)


SEVERAL = """\
%started (p: f32[8]) -> f32[16] {
  ROOT %g = f32[16]{0} all-gather(%p), channel_id=5, replica_groups={{0,1}}
}

%first (p: f32[8]) -> f32[16] {
  %g = f32[16]{0} all-gather(%p), channel_id=5, replica_groups={{0,1}}
  ROOT %x = f32[16] add(%g, %g)
}

%other (p: f32[8]) -> f32[16] {
  ROOT %g = f32[16]{0} all-gather(%p), channel_id=6, replica_groups={{0,1}}
}

%beside (p: f32[8]) -> f32[16] {
  ROOT %r = f32[16]{0} all-reduce(%p), channel_id=5, replica_groups={{0,1}}, to_apply=%sum
}

%inside (p: f32[8]) -> f32[16] {
  ROOT %f = f32[16] fusion(%p), kind=kLoop, calls=%other
}

%branch (p: f32[8]) -> f32[16] {
  ROOT %g = f32[16]{0} all-gather(%p), channel_id=5, replica_groups={{0,1}}
}

ENTRY %main (p: f32[8]) -> f32[16] {
  %a = f32[16] fusion(%p), kind=kCustom, calls=%started
  %b = f32[16] fusion(%p), kind=kCustom, calls=%first
  %c = f32[16] fusion(%p), kind=kCustom, calls=%beside
  %d = ((f32[8]), f32[16], u32[]) async-start(%p), calls=%inside
  %e = ((f32[8]), f32[16], u32[]) async-update(%d), calls=%inside
  %f = f32[16] async-done(%e), calls=%inside
  %g = f32[16] conditional(%k, %p, %p), branch_computations={%branch, %branch}
}
"""


def test_an_exchange_beside_several_steps_counts_once():
    one = Collective("all-gather", 64, 2)
    assert collectives(SEVERAL) == [
        Collective("all-gather", 64, 2, 1),
        Collective("all-gather", 64, 2, 1),
        Collective("all-gather", 64, 2, 2),
        Collective("all-reduce", 64, 2, 1),
    ]
    assert one in collectives(SEVERAL)


SCATTERS = """\
%sums (p: f32[8,4], q: bf16[16]) -> (f32[2,4], bf16[4]) {
  %r = (f32[8,4]{1,0:T(8,128)}, bf16[16]{0}) all-reduce(%p, %q), replica_groups={{0,1,2,3}}
  %g = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%r), index=0
  %h = bf16[16]{0} get-tuple-element(%r), index=1
  %i = u32[] multiply(%partition, %two)
  %s = f32[2,4]{1,0:T(8,128)} dynamic-slice(%g, %i, %zero), dynamic_slice_sizes={2,4}
  %t = bf16[4]{0} dynamic-slice(%h, %i), dynamic_slice_sizes={4}
  ROOT %u = (f32[2,4], bf16[4]) tuple(%s, %t)
}

ENTRY %main (p: f32[8,4], q: bf16[16]) -> (f32[2,4], bf16[4]) {
  ROOT %f = (f32[2,4], bf16[4]) fusion(%p, %q), kind=kCustom, calls=%sums
}
"""


def test_a_sum_of_which_each_keeps_its_part_is_a_reduce_scatter():
    assert collectives(SCATTERS) == [Collective("reduce-scatter", 2 * 4 * 4 + 4 * 2, 4)]
    all_kept = Collective("all-reduce", 8 * 4 * 4 + 16 * 2, 4)
    also_read = SCATTERS.replace("  ROOT %u", "  %v = f32[8,4] negate(%g)\n  ROOT %u")
    assert collectives(also_read) == [all_kept]
    # Two steps of a program, of which the first may be waited for by others as well.
    apart = SCATTERS.replace("fusion(%p, %q), kind=kCustom, calls", "call(%p, %q), to_apply")
    assert collectives(apart) == [all_kept]


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=8,'axis_1'=1,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_0'}", 8),
        ("mesh['a'=2,'b'=4,'c'=2] {'a','c'}", 4),
        ("mesh['a'=2,'b'=16] {'b':(2)4}", 4),
        ("mesh['a'=2,'b'=16] {'a','b':(1)8}", 16),
        ("mesh['a'=2] {'b'}", 32),
        ("[4,8]<=[32]", 8),
        ("[8,4]<=[4,8]T(1,0)", 4),
        ("{{0,1,2},{3,4,5}}", 3),
        ("{}", 32),
    ],
)
def test_groups_are_read(groups, devices):
    text = (
        "ENTRY %main (p: f32[8]) -> f32[8] {\n  %r = f32[8]{0} all-reduce(%p), channel_id=1, "
        f"replica_groups={groups}, use_global_device_ids=true, to_apply=%sum\n}}\n"
    )
    assert collectives(text, devices=32) == [Collective("all-reduce", 32, devices)]


def test_groups_of_this_xla_are_read():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    both = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def centred(x):
        groups = x.reshape(2, 8, 32)
        return (groups - groups.mean(axis=1, keepdims=True)).reshape(16, 32)

    argument = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=both)
    made = jax.jit(centred, out_shardings=both).lower(argument).compile()
    assert collectives(made.as_text()) == [Collective("all-reduce", 4 * 32, 4)]


def test_a_part_of_a_program_is_a_program():
    made = compiled(looping(5), jnp.ones((4, 32)))
    program = read_program(made.as_text())
    for loop in program.loops:
        text = program.alone(loop.body)
        assert not re.search(r"stack_frame_id", text)
        part = read_program(text)
        assert part.entry == loop.body
        assert set(part.lines) <= set(program.lines)
    assert costs._analyse(program.alone(program.entry)) == cost_of(made.cost_analysis())


def test_what_selects_and_scatters_is_of_a_part_as_well():
    """The gradient of max pooling, as the TPU compiler leaves it; that for CPU does not."""

    def pooled(x):
        return jnp.sum(nn.max_pool(x, (3, 3), (2, 2)) ** 2)

    def step(x, _):
        return x - jax.grad(pooled)(x), None

    lowered = jax.jit(lambda x: jax.lax.scan(step, x, None, length=5)[0]).lower(
        jnp.ones((2, 8, 8, 3))
    )
    text = lowered.compiler_ir("hlo").as_hlo_text()
    read = importlib.import_module("jaxlib._hlo").hlo_module_from_text
    program = read_program(read(text).to_string())
    (loop,) = program.loops
    assert len(re.findall("(?:select|scatter)=", program.alone(loop.body))) == 2
    once = costs._analyse(program.alone(program.entry))
    assert once == costs._analyse(text)
    assert with_all_rounds(once, program).flops > 4 * once.flops


def test_a_part_that_cannot_be_read_is_not_counted():
    assert costs._analyse("HloModule alone\n\nENTRY %missing () -> f32[] {\n}\n") is None


FOR_TPU = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from fgkd_jax.cli.compilation.topology import open_slice
mesh = Mesh(np.array(open_slice("v5e:2x2").devices).reshape(2, 2), ("data", "fsdp"))
x = jax.ShapeDtypeStruct((16, 256), jnp.float32, sharding=NamedSharding(mesh, P("data")))
w = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=NamedSharding(mesh, P()))

def loss(w, x):
    def body(c, _):
        return jnp.tanh(c @ w) - jnp.mean(c, axis=0, keepdims=True), None
    return jnp.mean(jax.lax.scan(body, x, None, length=9)[0])

print(jax.jit(jax.grad(loss)).lower(w, x).compile().as_text())
print("=" * 9)
parts = NamedSharding(mesh, P(("data", "fsdp")))  # small arrays are summed in another way
w = jax.ShapeDtypeStruct((1024, 2048), jnp.float32, sharding=parts)
x = jax.ShapeDtypeStruct((4096, 1024), jnp.float32, sharding=parts)
step = lambda w, x: w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)
print(jax.jit(step, out_shardings=parts).lower(w, x).compile().as_text())
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `tpu` is not installed"
)
def test_what_the_tpu_compiler_writes_is_read():
    """A process of its own: the compiler is to be loaded where nothing else runs."""
    done = subprocess.run([sys.executable, "-c", FOR_TPU], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "known_trip_count" not in done.stdout, "it is no longer to be derived"
    loops, sharded = done.stdout.split("=" * 9)
    found = {one.kind: one for one in find_collectives(read_program(sharded), devices=4)}
    assert found.keys() == {"all-gather", "reduce-scatter"}
    assert found["reduce-scatter"] == Collective("reduce-scatter", 256 * 2048 * 4, 4)
    program = read_program(loops)
    assert [loop.rounds for loop in program.loops] == [9, 9]
    found = find_collectives(program, devices=4)
    assert {one.devices for one in found} == {2}
    assert sum(one.times for one in found if one.kind == "all-reduce") >= 18
    once = costs._analyse(program.alone(program.entry))
    whole = with_all_rounds(once, program)
    # Of a round: one product of 8 rows forward and two backward.
    assert whole.flops > 9 * 3 * 2 * 8 * 256 * 256 > once.flops
