# Debian's nginx under the name of the published image. Of that one's files it has none but the program's own.
FROM blackwell-lab-base:trixie AS debian
COPY packages/ /packages/
COPY pick_libraries /pick_libraries
RUN dpkg --install /packages/*.deb && sh /pick_libraries /picked /usr/sbin/nginx \
    && mkdir -p /picked/usr/sbin /picked/etc/nginx /picked/var/log/nginx /picked/var/lib/nginx /picked/var/cache/nginx \
    && cp /usr/sbin/nginx /picked/usr/sbin/ && cp /etc/nginx/mime.types /picked/etc/nginx/

FROM blackwell-lab-python:trixie
COPY --from=debian /picked/ /
RUN echo 'nginx:x:101:101:nginx:/nonexistent:/bin/false' >> /etc/passwd && echo 'nginx:x:101:' >> /etc/group
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
