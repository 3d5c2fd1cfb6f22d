"""Expression text with its precedence, so that only needed parentheses are written.

infix(Text("a + b", ADD), "*", Text("c"), MUL)  ->  (a + b) * c
"""

from __future__ import annotations

from dataclasses import dataclass

# Python's precedence, loosest first.
COMPARE, OR, XOR, AND, SHIFT, ADD, MUL, UNARY, ATOM = range(9)


@dataclass(frozen=True, slots=True)
class Text:
    """An expression and how tightly its outermost operator binds."""

    text: str
    precedence: int = ATOM

    def wrap(self, at_least: int) -> str:
        """The text, in parentheses when it binds less tightly than `at_least`."""
        return self.text if self.precedence >= at_least else f"({self.text})"


def infix(a: Text, operator: str, b: Text, precedence: int) -> Text:
    """`a operator b`, left-associative: the right operand must bind tighter, so (a + b) + c is a + b + c."""
    left = precedence if precedence != COMPARE else precedence + 1
    right = b.wrap(precedence + 1)
    if operator in "+-" and right.startswith("-") and b.precedence == UNARY:
        operator, right = ("-" if operator == "+" else "+"), right[1:]
    return Text(f"{a.wrap(left)} {operator} {right}", precedence)


def call(function: str, *operands: str) -> Text:
    """`function(operands)`."""
    return Text(f"{function}({', '.join(operands)})")
