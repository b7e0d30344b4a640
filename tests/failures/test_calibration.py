"""The limits and rates that ship: every label has one for every domain, and none fires on one text in two hundred."""

from __future__ import annotations

import pytest

from shardscope.failures import ORDER, false_alarm_rate
from shardscope.failures.calibration import limits
from shardscope.failures.repetition import SIZES
from shardscope.failures.text_model import DOMAINS


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("failure", ORDER)
def test_every_label_has_a_measured_rate_of_at_most_half_a_percent(failure: str, domain: str) -> None:
    found = false_alarm_rate(failure, domain)
    assert 0 <= found.low <= found.rate <= found.high <= 1
    assert found.rate <= 0.005
    assert found.texts >= 200
    assert 0 <= false_alarm_rate(failure, domain, suspect=True).rate < 0.5


@pytest.mark.parametrize("domain", DOMAINS)
def test_limits_lie_where_only_the_tail_of_peoples_text_does(domain: str) -> None:
    allowed = limits(domain)
    assert list(allowed.repetitive) == list(SIZES)
    assert all(0 < repeated < 1 and compression > 1 for repeated, compression in allowed.repetitive.values())
    assert all(0.05 < share < 0.9 for share in allowed.broken_words.values())
    assert allowed.drift.odds < 0


def test_unknown_labels_and_domains_have_no_rate() -> None:
    with pytest.raises(KeyError):
        false_alarm_rate("ok", "prose")
    with pytest.raises(KeyError):
        false_alarm_rate("loop", "music")
