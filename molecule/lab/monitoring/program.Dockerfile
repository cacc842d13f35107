# A Debian package's program under the name and in the place of the published image.
FROM blackwell-lab-base:trixie AS debian
COPY packages/ /packages/
COPY pick /pick
ARG PROGRAMS
RUN sh /pick /picked $PROGRAMS

FROM blackwell-lab-python:trixie
COPY --from=debian /picked/ /
ARG DATA
RUN echo 'nobody:x:65534:65534:nobody:/:/bin/false' >> /etc/passwd && mkdir -p /etc/prometheus $DATA && chown 65534:65534 $DATA
USER 65534
ARG ENTRY
ENV ENTRY=${ENTRY}
ENTRYPOINT ["/entry"]
