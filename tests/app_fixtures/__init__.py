"""The fixtures that Python, Kotlin and Swift tests share; `python -m tests.app_fixtures` writes them."""
