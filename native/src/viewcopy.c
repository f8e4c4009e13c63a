/* viewcopy: a view from the caller's memory, checked and copied whole. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "net.h"

bool pc_view_is_sound(const struct pccl_view *view, uint64_t self) {
    if (!view->epoch || !view->member_count || view->member_count > PCCL_MEMBERS_MAX ||
        view->self >= view->member_count || view->members[view->self].peer != self)
        return false;
    if (view->hub < -1 || view->hub >= (int32_t)view->member_count ||
        view->large < PCCL_ROUTE_AUTO || view->large > PCCL_ROUTE_DIRECT)
        return false;
    for (uint32_t i = 0; i < view->member_count; i++)
        if (!memchr(view->members[i].host, 0, PCCL_HOST_MAX) ||
            !pc_net_is_numeric(view->members[i].host))
            return false;
    for (uint32_t i = 0; i < view->cut_count; i++)
        if (view->cuts[i].a >= view->member_count || view->cuts[i].b >= view->member_count)
            return false;
    for (uint32_t i = 0; i < view->verdict_count; i++) {
        const struct pccl_verdict *verdict = &view->verdicts[i];
        if (verdict->outcome < PCCL_RUN || verdict->outcome > PCCL_ABORT)
            return false;
        if (verdict->outcome == PCCL_ABORT && verdict->status == PCCL_OK)
            return false;
        for (uint32_t s = 0; s < verdict->holder_count; s++)
            if (verdict->holders[s] < PCCL_HOLDER_ALL ||
                verdict->holders[s] >= (int32_t)view->member_count)
                return false;
    }
    return true;
}

struct pccl_view *pc_view_copy(const struct pccl_view *view) {
    size_t bytes = sizeof *view + view->member_count * sizeof *view->members +
                   view->verdict_count * sizeof *view->verdicts +
                   view->cut_count * sizeof *view->cuts;
    for (uint32_t i = 0; i < view->verdict_count; i++)
        bytes += view->verdicts[i].holder_count * sizeof(int32_t) +
                 (view->verdicts[i].text ? strnlen(view->verdicts[i].text, 1023) : 0) + 1;
    struct pccl_view *copy = calloc(1, bytes);
    if (!copy)
        return NULL;
    struct pccl_verdict *verdicts = (struct pccl_verdict *)(copy + 1);
    struct pccl_member *members = (struct pccl_member *)(verdicts + view->verdict_count);
    struct pccl_edge *cuts = (struct pccl_edge *)(members + view->member_count);
    int32_t *holders = (int32_t *)(cuts + view->cut_count);
    *copy = *view;
    memcpy(members, view->members, view->member_count * sizeof *members);
    if (view->cut_count)
        memcpy(cuts, view->cuts, view->cut_count * sizeof *cuts);
    for (uint32_t i = 0; i < view->verdict_count; i++) {
        verdicts[i] = view->verdicts[i];
        verdicts[i].holders = holders;
        if (verdicts[i].holder_count)
            memcpy(holders, view->verdicts[i].holders, verdicts[i].holder_count * sizeof *holders);
        holders += verdicts[i].holder_count;
    }
    char *text = (char *)holders;
    for (uint32_t i = 0; i < view->verdict_count; i++) {
        const char *from = view->verdicts[i].text ? view->verdicts[i].text : "";
        size_t length = strnlen(from, 1023);
        memcpy(text, from, length);
        verdicts[i].text = text;
        text += length + 1;
    }
    copy->members = members;
    copy->cuts = cuts;
    copy->verdicts = verdicts;
    return copy;
}
