"""The report: one frozen Report value from a Match or Transfer, written as terminal text, JSON or an HTML page."""

from automap.report.html import notebook_html as notebook_html
from automap.report.html import report_html as report_html
from automap.report.json import report_json as report_json
from automap.report.model import Report as Report
from automap.report.model import build_report as build_report
from automap.report.text import print_findings as print_findings
from automap.report.text import print_report as print_report
from automap.report.text import render_text as render_text
from automap.results import OpParity as OpParity
