"""study watch: serves the page of a study on this machine while the study runs; it never writes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from darts_sg.analysis import serving
from darts_sg.analysis.serving import LivePage, Server, state_of_files
from darts_sg.study.contents import contents
from darts_sg.study.folder import StudyFolder
from darts_sg.study.page import study_page
from darts_sg.study.results import collect

WATCHED = ("study.yaml", "genotypes/*.yaml", "runs/*/metrics.csv", "runs/*/result.json", "runs/*/genotype.yaml")


class StudyPage(LivePage):
    """The page of a study, made again when something that it shows has changed."""

    kind = "study"

    def state(self) -> str:
        digest = hashlib.sha256(
            state_of_files(path for pattern in WATCHED for path in self.folder.glob(pattern)).encode()
        )
        for state in StudyFolder(self.folder).states().values():  # without their heartbeats, which change all the time
            digest.update(f"{state.id}\0{state.state}\0{state.attempts}\0{state.failure}\0".encode())
        return digest.hexdigest()[:16]

    def make(self, version: str) -> str:
        results = collect(self.folder)
        return study_page(results, contents(results), live=True, version_of_state=version)


def make_server(folder: Path, port: int) -> Server:
    """A server of the study's page, see `serving.make_server`."""
    return serving.make_server(StudyPage(folder), port)


def watch(folder: Path, port: int, say: Callable[[str], None] = print) -> None:
    """Serve the page until Ctrl-C. Raises UsageError if `folder` is no study, or if the port is taken."""
    collect(folder)  # say at once what is wrong with the folder
    serving.serve(StudyPage(folder), port, say)
