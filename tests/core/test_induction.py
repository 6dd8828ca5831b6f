"""The step of the induction in docs/equations.md, section 8, as algebra: the recurrence is BPTT's for every length.

The later steps are any function R of the input of step t + 1, whose derivative is lambda[t+1]; the loss may see step t
in any way, G. What BPTT computes is the derivative of the sum by what step t got, with f' for that of the spikes.
"""

from typing import NamedTuple

import pytest
import sympy as sp  # type: ignore[import-untyped]

ALPHA, RHO, THETA, X, LOWER = sp.symbols("alpha rho theta x lower", real=True)
#: The membrane and the spikes before step t, of which x, the input of step t, is independent.
U, S = sp.symbols("u s", real=True)


class Row(NamedTuple):
    """A row of the table of section 3, and what a step keeps of its membrane (r) and takes off by rho (q)."""

    membrane: sp.Expr  # without the input of the step
    direct: sp.Expr
    through_spikes: sp.Expr
    kept: sp.Expr
    taken: sp.Expr


ROWS = {
    "subtract": Row(ALPHA * U - RHO * S, ALPHA, -RHO, U, -S),
    "subtract, decayed": Row(ALPHA * (U - RHO * S), ALPHA, -ALPHA * RHO, U - RHO * S, -ALPHA * S),
    "zero": Row(ALPHA * U * (1 - S), ALPHA * (1 - S), -ALPHA * U, U * (1 - S), sp.Integer(0)),
    "none": Row(ALPHA * U, ALPHA, sp.Integer(0), U, sp.Integer(0)),
}

rest, seen, fire, surrogate = (sp.Function(name) for name in ("R", "G", "F", "dF"))


def spikes_differentiated(expression: sp.Expr) -> sp.Expr:
    """With the surrogate in place of the derivative of the spikes, fire(u - theta)."""
    return expression.doit().replace(
        lambda part: isinstance(part, sp.Subs) and part.expr.func is sp.Derivative and part.expr.expr.func is fire,
        lambda part: surrogate(part.point[0]),
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("clipped", [False, True])
def test_one_step_more_of_the_recurrence_is_one_step_more_of_bptt(row: Row, clipped: bool) -> None:
    u = LOWER if clipped else X + sp.Symbol("before")
    s = fire(u - THETA)
    given = row.membrane.subs({U: u, S: s}, simultaneous=True)
    loss = seen(u, s) + rest(given)

    later = sp.Derivative(rest(X), X).doit().subs(X, given)
    slot_u, slot_s = sp.symbols("slot_u slot_s")
    g = seen(slot_u, slot_s).diff(slot_s).subs({slot_u: u, slot_s: s})
    h = seen(slot_u, slot_s).diff(slot_u).subs({slot_u: u, slot_s: s})
    here = {U: u, S: s}
    b, c = (part.subs(here, simultaneous=True) for part in (row.direct, row.through_spikes))
    by_spikes = surrogate(u - THETA) * (g + c * later)
    bracket = by_spikes + h + b * later

    def difference(by_bptt: sp.Expr, by_recurrence: sp.Expr) -> sp.Expr:
        return sp.simplify(spikes_differentiated(by_bptt - by_recurrence).doit())

    assert difference(sp.diff(loss, X), 0 if clipped else bracket) == 0  # lambda[t]
    assert difference(sp.diff(loss, LOWER), bracket if clipped else 0) == 0  # its part of dL/dmin
    assert difference(sp.diff(loss, THETA), -by_spikes) == 0  # of dL/dtheta


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_a_step_adds_to_the_gradients_of_parameters_is_bptts(row: Row) -> None:
    loss = rest(row.membrane)
    later = sp.Derivative(rest(X), X).doit().subs(X, row.membrane)
    for parameter, factor in ((ALPHA, row.kept), (RHO, row.taken), (U, row.direct), (S, row.through_spikes)):
        assert sp.simplify((sp.diff(loss, parameter) - later * factor).doit()) == 0


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("clipped", [False, True])
def test_one_step_more_is_one_step_more_of_bptt_with_a_bound_after_the_reset(name: str, clipped: bool) -> None:
    row, decay = ROWS[name], sp.Integer(1) if name == "subtract" else ALPHA
    u = X + sp.Symbol("before")
    s = fire(u - THETA)
    bounded = decay * LOWER if clipped else row.membrane
    given = bounded.subs({U: u, S: s}, simultaneous=True)
    loss = seen(u, s) + rest(given)

    passed = 0 if clipped else 1  # k
    later = sp.Derivative(rest(X), X).doit().subs(X, given)
    slot_u, slot_s = sp.symbols("slot_u slot_s")
    g = seen(slot_u, slot_s).diff(slot_s).subs({slot_u: u, slot_s: s})
    h = seen(slot_u, slot_s).diff(slot_u).subs({slot_u: u, slot_s: s})
    b, c = (part.subs({U: u, S: s}, simultaneous=True) for part in (row.direct, row.through_spikes))
    by_spikes = surrogate(u - THETA) * (g + passed * c * later)

    def difference(by_bptt: sp.Expr, by_recurrence: sp.Expr) -> sp.Expr:
        return sp.simplify(spikes_differentiated(by_bptt - by_recurrence).doit())

    assert difference(sp.diff(loss, X), by_spikes + h + passed * b * later) == 0  # lambda[t]
    assert difference(sp.diff(loss, LOWER), (1 - passed) * decay * later) == 0  # its part of dL/dmin
    assert difference(sp.diff(loss, THETA), -by_spikes) == 0
    kept = (LOWER * decay.diff(ALPHA) if clipped else row.kept).subs({U: u, S: s}, simultaneous=True)
    assert difference(sp.diff(loss, ALPHA), kept * later) == 0
    taken = row.taken.subs({U: u, S: s}, simultaneous=True)
    assert difference(sp.diff(loss, RHO), passed * taken * later) == 0


def test_a_wrong_row_is_found() -> None:
    wrong = ROWS["subtract"]._replace(through_spikes=-ALPHA * RHO)
    with pytest.raises(AssertionError):
        test_one_step_more_of_the_recurrence_is_one_step_more_of_bptt(wrong, False)
    with pytest.raises(AssertionError):
        test_what_a_step_adds_to_the_gradients_of_parameters_is_bptts(wrong)
