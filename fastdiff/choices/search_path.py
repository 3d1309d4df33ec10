"""Where Hydra looks for options: after fastdiff's own in a team's folders."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from fastdiff.choices.folders import config_dirs


class TeamFolders(SearchPathPlugin):  # type: ignore[misc]
    """Hydra asks it whenever it begins, so that `fastdiff`'s own composition, Hydra's main and its launchers see the same."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in config_dirs():
            search_path.append("fastdiff", f"file://{folder}")
