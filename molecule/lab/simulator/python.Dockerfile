# What the simulated engines share: Debian's Python and busybox, nothing else (about 40 MB instead of the base image's 490).
FROM blackwell-lab-base:trixie AS debian
COPY pick_python /pick_python
RUN sh /pick_python /picked

FROM scratch
COPY --from=debian /picked/ /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/usr/local/lib/python3.12/dist-packages \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
CMD ["/bin/bash"]
