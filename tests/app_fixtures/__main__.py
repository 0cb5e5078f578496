"""`make fixtures`: write the shared fixtures and the resources that the apps carry."""

import sys

from tests.app_fixtures.files import FIXTURES, RESOURCE_FOLDERS, write_files
from tests.app_fixtures.generate import fixture_files, resource_files

files = fixture_files()
write_files(FIXTURES, files)
for folder in RESOURCE_FOLDERS:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in resource_files().items():
        (folder / name).write_bytes(content)
sys.stdout.write(f"{len(files)} files, {sum(map(len, files.values()))} bytes in {FIXTURES}\n")
