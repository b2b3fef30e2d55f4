"""Containerfiles of the forms that projects have, as stages of one file: each form ends with the stage of its name.

In the language of podman 4: it has no heredocs, heeds SHELL in no other instruction, and makes the directory of WORKDIR
when a RUN needs it. All are built in the context `FILES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BASE: Final = "localhost/forms:1"

FILES: Final[Mapping[str, str]] = {
    "src/main.c": "int main(){}\n", "src/lib/a.h": "#pragma once\n", "src/lib/deep/b.h": "", "Makefile": "all:\n",
    "requirements.txt": "x==1\n", "setup.py": "pass\n", "run.sh!": "#!/bin/sh\necho run\n",
    "conf/app.conf": "port=80\n", "conf/extra.conf": "", "package.json": "{}", "static/index.html": "<p>",
    "links/sub/x": "x", "links/file": "f", "links/dir/y": "y", "go.mod": "module x\n", "a1.txt": "1", "a2.txt": "2",
    ".dockerignore": "*.tmp\nsecret\n", "x.tmp": "t", "secret": "s", "README.md": "# read me\n",
}  # fmt: skip

GLOBAL: Final = "ARG BASE=localhost/forms:1\nARG VERSION=1.2.3\n"

FORMS: Final[Mapping[str, str]] = {
    "c": """
        FROM $BASE AS c-build
        WORKDIR /src
        COPY Makefile src ./
        RUN mkdir -p out && cat main.c lib/a.h > out/app && chmod 755 out/app
        FROM $BASE AS c
        COPY --from=c-build /src/out/app /usr/local/bin/app
        USER games
        CMD ["app"]
        """,
    "python": """
        FROM $BASE AS python
        ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR="1"
        WORKDIR /app
        COPY requirements.txt ./
        RUN cat requirements.txt > installed
        COPY . .
        EXPOSE 8000
        ENTRYPOINT ["/app/run.sh"]
        CMD ["--port", "8000"]
        """,
    "python-venv": """
        FROM python AS python-wheels
        RUN mkdir -p /venv/bin /venv/lib && ln -s ../lib /venv/bin/lib && echo w > /venv/lib/w && chmod 700 /venv/lib/w
        FROM $BASE AS python-venv
        ENV PATH=/venv/bin:$PATH
        COPY --from=python-wheels --chown=1000:1000 /venv /venv
        """,
    "node": """
        FROM $BASE AS node-deps
        COPY package.json /app/
        FROM node-deps AS node
        WORKDIR /app
        COPY static static
        COPY conf/*.conf /etc/app/
        VOLUME /data/kept
        STOPSIGNAL SIGINT
        LABEL org.example.one=1 org.example.two="two words"
        CMD node server.js
        """,
    "go": """
        FROM $BASE AS go-build
        WORKDIR /go/src
        COPY go.mod .
        RUN echo binary > /go/app && chmod 0755 /go/app
        FROM scratch AS go
        COPY --from=go-build /etc/passwd /etc/
        COPY --from=go-build --chown=65532:65532 /go/app /app
        USER 65532:65532
        ENTRYPOINT ["/app"]
        """,
    "java": """
        FROM $BASE AS java
        ARG JAR=README.md
        ENV JAVA_OPTS="-Xmx1g -Dx=y"
        COPY ${JAR} /opt/app.jar
        HEALTHCHECK --interval=30s --timeout=3s --retries=2 CMD test -e /opt/app.jar || exit 1
        ENTRYPOINT ["/bin/sh", "-c", "exec java $JAVA_OPTS -jar /opt/app.jar"]
        """,
    "nginx": """
        FROM $BASE AS nginx
        COPY conf /etc/nginx/conf.d/
        COPY static/ /usr/share/nginx/html
        RUN ln -sf /dev/stdout /var/access.log && chmod -R a+rX /usr/share/nginx
        EXPOSE 80 443/tcp 443/udp
        STOPSIGNAL SIGQUIT
        CMD ["nginx", "-g", "daemon off;"]
        """,
    "apt": r"""
        FROM $BASE AS apt
        RUN set -eux; \
            mkdir -p /var/lib/apt/lists /usr/share/doc/x /usr/bin; \
            # what apt would write
            echo list > /var/lib/apt/lists/x; \
            echo tool > /usr/bin/tool; chmod 4755 /usr/bin/tool; \
            rm -rf /var/lib/apt/lists/*
        RUN mkdir /var/cache && touch /var/cache/pkg && rm -r /var/cache
        """,
    "users": """
        FROM $BASE AS users
        RUN echo 'app:x:1001:1001::/home/app:/bin/sh' >> /etc/passwd && echo 'app:x:1001:' >> /etc/group
        COPY --chown=app:app conf /home/app/conf
        COPY --chown=5:60 run.sh /home/app/
        RUN chown -R app:app /home/app && chmod 2750 /home/app
        USER app
        WORKDIR /home/app
        RUN id -u > uid
        """,
    "user-and-group": """
        FROM $BASE AS user-and-group
        USER 1234:4321
        WORKDIR /made/by/user
        RUN id -u > /tmp/ids; id -g >> /tmp/ids
        """,
    "removed": """
        FROM $BASE AS removed
        RUN rm -rf /data/kept && rm /data/file
        RUN mkdir /data/kept && echo new > /data/kept/new
        RUN ln -s /data/kept /lnk && ln /data/kept/new /data/hard && chmod 600 /data/hard
        RUN rm -r /data/dir && echo file > /data/dir
        """,
    "into-links": r"""
        FROM $BASE AS into-links
        RUN mkdir -p /real /l/d /l/e && ln -s /real /link && ln -s file /data/to-file && \
            ln -s /data/file /real/to-file && ln -s /etc/motd /l/file && ln -s nowhere /l/sub && \
            ln -s nowhere /l/dir && ln -s /etc/motd /l/d/README.md
        COPY README.md /link/
        COPY conf /link/conf
        COPY README.md /data/to-file
        COPY README.md /link/to-file
        COPY links /l
        COPY README.md run.sh /l/d/
        """,
    "arguments": """
        FROM $BASE AS arguments
        ARG VERSION
        ARG EMPTY
        ENV MAJOR=1 FALLBACK=${EMPTY:-fallback} SET=${VERSION:+set}
        RUN echo "$VERSION $EMPTY" > /version
        LABEL version=$VERSION
        WORKDIR /opt/$VERSION
        COPY README.md $VERSION.md
        """,
    "variables": r"""
        FROM $BASE AS variables
        ENV PORT=8080 WHO=games DIR=/srv/data SIG=SIGUSR1
        ENV ABC=hello DEF=$ABC\ world GHI=\$ABC
        EXPOSE $PORT
        USER ${WHO}
        VOLUME $DIR
        STOPSIGNAL $SIG
        WORKDIR ${DIR}/${WHO}
        RUN pwd > /tmp/where
        """,
    "directories": """
        FROM $BASE AS directories
        COPY src /a
        COPY src /b/
        COPY src/lib /data
        COPY conf static /c/
        COPY ./ /d/
        ADD conf /e/
        """,
    "globs": """
        FROM $BASE AS globs
        COPY a?.txt *.md /texts/
        COPY s*c/li* /matched/
        ADD --chown=3:4 [ax]1.txt /owned/
        """,
    "shell": """
        FROM $BASE AS shell
        RUN echo one > /one
        ENTRYPOINT exec /bin/cat
        CMD /one
        """,
    "entrypoint": """
        FROM $BASE AS entrypoint
        COPY run.sh /usr/local/bin/
        RUN chmod 711 /usr/local/bin/run.sh && ln -s usr/local/bin/run.sh /entry.sh
        ENTRYPOINT ["run.sh"]
        CMD ["serve"]
        FROM entrypoint AS other-entrypoint
        ENTRYPOINT ["other.sh"]
        """,
    "on-build": """
        FROM $BASE AS on-build
        ONBUILD COPY README.md /triggered
        ONBUILD RUN cat /triggered > /ran
        MAINTAINER me
        """,
    "triggered": """
        FROM on-build AS triggered
        COPY run.sh /
        """,
    "scratch": """
        FROM $BASE AS scratch-made
        RUN mkdir /out && echo a > /out/a && chown 7:8 /out/a
        FROM scratch AS scratch-form
        COPY --from=scratch-made /out /
        COPY run.sh /bin/
        ENV A=b
        """,
    "archive": """
        FROM $BASE AS archive
        ADD app.tar.gz /srv/
        COPY app.tar.gz /packed/
        """,
    "database": """
        FROM $BASE AS database
        RUN mkdir -p /var/lib/db /srv/db && chown -R 999:999 /var/lib/db /srv/db && chmod 1777 /srv/db
        ENV DATA /var/lib/db with spaces
        VOLUME ["/var/lib/db", "/config"]
        STOPSIGNAL SIGTERM
        """,
    "healthcheck-none": """
        FROM java AS healthcheck-none
        HEALTHCHECK NONE
        CMD []
        """,
    "labels": r"""
        FROM $BASE AS labels
        LABEL maintainer="me <me@example.org>" \
              org.opencontainers.image.title="a \"title\"" \
              org.opencontainers.image.version=$VERSION
        LABEL multi.line="one \
        two"
        """,
    "attributes": """
        FROM $BASE AS attributes-made
        RUN chmod 751 /bin/able
        RUN cp /bin/able /bin/unable
        FROM $BASE AS attributes
        COPY --from=attributes-made /bin/able /bin/unable /made/
        RUN mv /bin/able /bin/renamed
        """,
    "modes": """
        FROM $BASE AS modes
        RUN mkdir -p /m/sticky /m/closed && touch /m/set /m/none && chmod 1777 /m/sticky && chmod 6755 /m/set
        RUN chmod 0 /m/none /m/closed && touch /m/closed/in && chmod 2700 /data/kept
        """,
    "ruby": """
        FROM $BASE AS ruby-gems
        WORKDIR /gems
        COPY package.json requirements.txt ./
        RUN mkdir -p vendor/a && echo gem > vendor/a/g && touch vendor/cache && rm vendor/cache
        FROM ruby-gems AS ruby
        COPY --from=ruby-gems /gems/vendor /bundle
        RUN rm -r /gems/vendor
        ENV RAILS_ENV=production
        """,
    "php": """
        FROM $BASE AS php
        WORKDIR /data
        COPY --chown=5:60 . html
        RUN mkdir html/cache && chmod 770 html/cache && chown 5 html/cache
        ONBUILD ENV X=y
        EXPOSE 9000/tcp
        """,
}
"""Name -> the stages of a form. Later ones may be made of earlier ones."""
