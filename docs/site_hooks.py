"""Hooks of MkDocs for `make docs`: pages from outside docs/, links into the repository, roles in docstrings."""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# Documents outside docs/, and their pages.
PAGES = {
    'README.md': 'index.md',
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
    'SECURITY.md': 'security.md',
    'docker/README.md': 'docker.md',
    'configs/pretrain/README.md': 'configs/pretrain.md',
    'configs/cls/README.md': 'configs/cls.md',
    'configs/seg/README.md': 'configs/seg.md',
    'configs/det/README.md': 'configs/det.md',
    'configs/studies/cifar10/README.md': 'configs/cifar10.md',
}
SOURCES = {page: source for source, page in PAGES.items()}
# Code, in which nothing is a link; the target of a link, a picture or a definition of a link.
LINK = re.compile(
    r'(?P<code>^```.*?^```|`[^`\n]*`)'
    r'|(?P<start>\]\(|^\[[^\]]+\]: )(?P<target>[^)\s:#]+)(?=[#)\s])(?P<anchor>#[^)\s]*)?',
    re.MULTILINE | re.DOTALL,
)
OUTSIDE = re.compile(r'<a href="repository:([^"]*)">(.*?)</a>', re.DOTALL)
ROLE = re.compile(r':(?:func|class|meth|mod|data):`~?([\w.]+)`')

log = get_plugin_logger('site')


def _git(*arguments: str) -> str:
    done = subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ''


def repository_url() -> str:
    """Address of the repository: that of the GitHub action, or the https address it was cloned from, or ''."""
    if 'GITHUB_REPOSITORY' in os.environ:
        return f'{os.environ["GITHUB_SERVER_URL"]}/{os.environ["GITHUB_REPOSITORY"]}'
    origin = _git('remote', 'get-url', 'origin')
    return origin.removesuffix('.git') if origin.startswith('https://') else ''


def on_config(config: Any) -> Any:
    """Find the repository and its branch, or its commit where no branch is checked out."""
    config.repo_url = (config.repo_url or repository_url()).rstrip('/')
    config.extra['ref'] = _git('branch', '--show-current') or _git('rev-parse', 'HEAD') or 'main'
    if config.repo_url:
        config.repo_name = config.repo_url.split('/', 3)[-1]
    else:
        log.info('no address of the repository (REPOSITORY_URL): links to files that are no pages become plain text')
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the documents outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding='utf-8')))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links lead to pages, or into the repository.

    Raises:
        PluginError: If a link leads to a file that does not exist.
    """
    name = page.file.src_uri
    source = SOURCES.get(name, f'docs/{name}')

    def replace(match: re.Match) -> str:
        if match['code'] or name.startswith('api/'):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match['target']))
        if target.startswith('..') or not (ROOT / target).exists():
            raise PluginError(f'{source}: the link {match["target"]} leads to no file of the repository')
        anchor = match['anchor'] or ''
        here = PAGES.get(target) or (target[len('docs/') :] if target.startswith('docs/') else '')
        if here and files.get_file_from_path(here):
            target = posixpath.relpath(here, posixpath.dirname(name))
        else:
            target = f'repository:{"tree" if (ROOT / target).is_dir() else "blob"}/{config.extra["ref"]}/{target}'
        return f'{match["start"]}{target}{anchor}'

    return LINK.sub(replace, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Complete the links into the repository, or keep their text only if its address is not known."""
    link = rf'<a href="{config.repo_url}/\1">\2</a>' if config.repo_url else r'\2'
    return OUTSIDE.sub(link, html)


class Roles(griffe.Extension):
    """Turns the roles of Sphinx in docstrings (:class:`BootMAE`) into links, or into code if there is no such page."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Change the docstrings of a package that was read."""
        objects = list(_walk(pkg))
        places: dict[str, list[str]] = {}
        for obj in objects:
            places.setdefault(obj.name, []).append(obj.path)
        for obj in objects:
            if obj.docstring:
                obj.docstring.value = ROLE.sub(lambda match: _reference(match[1], obj, places), obj.docstring.value)  # noqa: B023


def _walk(obj: griffe.Object) -> Any:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _walk(member)


def _reference(name: str, obj: griffe.Object, places: dict[str, list[str]]) -> str:
    """Link to a name that is in the scope of an object, or the only one of the package."""
    first, _, rest = name.partition('.')
    found = places.get(name.rsplit('.', 1)[-1], [])
    if name.startswith(f'{obj.package.name}.'):
        path = name
    elif not rest and len(found) == 1:
        path = found[0]
    else:
        try:
            path = '.'.join(filter(None, [obj.resolve(first), rest]))
        except griffe.NameResolutionError:
            return f'`{name}`'
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
