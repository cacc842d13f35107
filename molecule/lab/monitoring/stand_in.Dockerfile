# A stand-in for a program that no package repository has.
FROM blackwell-lab-python:trixie
COPY program /usr/local/bin/program
ARG USER
ARG DATA
RUN mkdir -p $DATA && chown $USER $DATA
LABEL blackwell.lab.stands_in="yes"
USER ${USER}
ENTRYPOINT ["python3", "/usr/local/bin/program"]
