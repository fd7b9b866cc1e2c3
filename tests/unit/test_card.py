"""The card of a method is read from its docstring, by class or by source text, without torch."""

from __future__ import annotations

import subprocess
import sys

from medfields.card import Card

SOURCE = '''"""NeRP: sparse views from a network that memorised an earlier scan.

Shen et al. 2022, equations 3 to 5.
Embeds first.

Needs: projections, geometry; optional earlier scan. Gives: attenuation, 1/mm.
Deviations: millimetres instead of [-1, 1]. The learning rate
    is per mm.
Fidelity: published

Licence: patent family US 123.
Use when: you have an earlier scan; else TV is better.
"""
import does_not_exist

class NeRP(Method):
    """Not the card."""
'''


def test_every_part_is_found():
    card = Card.of(SOURCE)
    assert card.line == "NeRP: sparse views from a network that memorised an earlier scan."
    assert card.body == "Shen et al. 2022, equations 3 to 5. Embeds first."
    assert card.needs == "projections, geometry; optional earlier scan." and card.gives == "attenuation, 1/mm."
    assert card.deviations == "millimetres instead of [-1, 1]. The learning rate is per mm."
    assert card.fidelity == "published" and card.licence == "patent family US 123."
    assert card.use_when == "you have an earlier scan; else TV is better."
    assert card.is_complete


def test_a_word_in_the_text_is_no_label():
    assert Card.parse("Line.\n\nHe Needs: nothing.").needs == ""
    assert not Card.parse("Line.").is_complete and Card.parse("").line == ""


def test_a_class_may_carry_its_own_card():
    assert Card.of('"""A notebook."""\nclass A(Method):\n    """Mine.\n\n    Needs: a.\n    Gives: b.\n    """').line == "Mine."


def test_reading_a_card_does_not_load_torch():
    code = "import sys, medfields.card; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
