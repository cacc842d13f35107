"""A simulated huggingface_hub: what downloads ask of the real one, answered by the simulated hub."""

from types import SimpleNamespace

from engine_simulator import hub, machine

__version__ = "1.0.0+simulated"


class GatedRepoError(Exception):
    pass


class RepositoryNotFoundError(Exception):
    pass


class RevisionNotFoundError(Exception):
    pass


def _raise(problem: hub.HubError) -> None:
    kinds = {kind.__name__: kind for kind in (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError)}
    raise kinds.get(problem.kind, ConnectionError)(str(problem)) from problem


class HfApi:
    def model_info(self, name: str, revision: str = "main", files_metadata: bool = False) -> SimpleNamespace:
        model = machine.image()["sizes"]["models"].get(name)
        try:
            hub.check(name, model, revision, hub.commit_of(name))
        except hub.HubError as problem:
            _raise(problem)
        files = hub.files_of(name, model).items()
        siblings = [SimpleNamespace(rfilename=file, size=len(content)) for file, content in files]
        return SimpleNamespace(sha=hub.commit_of(name), siblings=siblings)


def snapshot_download(name: str, revision: str = "main", allow_patterns=None, max_workers: int = 8) -> str:
    try:
        return str(hub.fetch(name, revision, quiet=True))
    except hub.HubError as problem:
        _raise(problem)
