"""Templates of pages: every value is escaped, and one that is missing is an error."""

import jinja2


def load_template(package: str, name: str) -> jinja2.Template:
    """A template of the package's folder templates/."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
