"""Gates as JUnit's XML, read by the library's own parser."""

from __future__ import annotations

from xml.etree import ElementTree

from compress.recipes.gates.junit import junit
from compress.recipes.gates.limits import Gates, judged


def test_a_gate_is_a_case_and_a_missed_one_a_failure() -> None:
    gates = judged(Gates(max_kl=0.1, min_top1=0.9), {"kl_divergence": 0.05, "top1_agreement": 0.8})
    suites = ElementTree.fromstring(junit(gates, "org/<model>", 1.5))
    (suite,) = suites
    assert suites.attrib == {"tests": "2", "failures": "1", "errors": "0", "time": "1.500"}
    cases = {case.attrib["name"]: [failure.attrib["message"] for failure in case.iter("failure")] for case in suite}
    assert cases == {"max_kl": [], "min_top1": ["min_top1: 0.8 is below 0.9"]}
    assert {case.attrib["classname"] for case in suite} == {"org/<model>"}
    assert len(ElementTree.fromstring(junit([], "model", 0))[0]) == 0
