"""Gates as JUnit's XML, which CI systems show: one test case a gate, failed where it is missed."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from compress.recipes.gates.limits import Judged


def junit(gates: Sequence[Judged], model: str, seconds: float) -> bytes:
    """The document, in the form that Jenkins, GitLab and GitHub's reporters read; `seconds` are the run's."""
    missed = str(sum(not gate.holds for gate in gates))
    counts = {"tests": str(len(gates)), "failures": missed, "errors": "0", "time": f"{seconds:.3f}"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "compress gates", **counts})
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", {"classname": model, "name": gate.gate, "time": "0"})
        if not gate.holds:
            ElementTree.SubElement(case, "failure", {"type": "GateError", "message": str(gate)}).text = str(gate)
        ElementTree.SubElement(case, "system-out").text = f"{gate.gate}: {gate.value:.6g}, limit {gate.limit:.6g}"
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"
