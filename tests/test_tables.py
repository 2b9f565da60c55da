"""What the documents print is what the code and the measured results say."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tables_of_the_readme():
    run = subprocess.run([sys.executable, ROOT / "tools" / "tables.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_links_of_the_documents():
    """Every relative link leads to a file."""
    for document in [ROOT / "README.md", ROOT / "HACKING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"
